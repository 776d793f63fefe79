"""What an operator sets: the arguments of the Serve application and the limits it enforces."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Limits(BaseModel):
    """The most that one request may ask for. Whatever exceeds a limit is refused before it is worked on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_bytes: int = Field(default=64 * 2**20, ge=1024, description="Size of an uploaded radiograph")
    volume_bytes: int = Field(default=512 * 2**20, ge=1024, description="Size of an uploaded CT volume")
    batch_bytes: int = Field(default=1024 * 2**20, ge=1024, description="Size of all files of a batch")
    batch_files: int = Field(default=256, ge=1, description="Images in one batch")
    pixels: int = Field(default=36_000_000, ge=1024, description="Rows times columns of an image")
    slices: int = Field(default=1500, ge=2, description="Axial slices of a volume")
    prompts: int = Field(default=512, ge=1, description="Findings in one query")
    prompt_chars: int = Field(default=512, ge=16, description="Characters in one finding")
    requests: int = Field(
        default=16, ge=1, description="POST requests worked on at once; further ones are told to come back"
    )
    uploads: int = Field(
        default=128, ge=1, description="Bodies of POST requests that arrive at once; one that has, is worked on"
    )
    held_bytes: int = Field(default=2 * 2**30, ge=1024, description="Bytes of all request bodies held at once")
    body_seconds: float = Field(default=60.0, gt=0.0, description="Time in which a request's body has to arrive")
    request_seconds: float = Field(
        default=90.0, gt=0.0, description="Time that a request has in all: Serve's own request_timeout_s, set alike"
    )
    answer_seconds: float = Field(
        default=45.0, gt=0.0, description="Time in which a model has to answer; below request_seconds"
    )
    requests_per_minute: int = Field(default=0, ge=0, description="POST requests of one client address; 0 is no limit")
    reads_per_minute: int = Field(
        default=0, ge=0, description="Other requests of one client address, but checks of health; 0 is no limit"
    )
    readers: int = Field(default=2, ge=1, description="Confined processes that read foreign files")
    reader_wait_seconds: float = Field(
        default=20.0, gt=0.0, description="Time that a request waits for one of them; those of a batch wait on"
    )
    reader_memory_bytes: int = Field(default=3 * 2**30, ge=2**27, description="Memory that reading one file may take")
    reader_seconds: int = Field(
        default=60,
        ge=1,
        description="Processor time that reading one file may take; with reader_wait_seconds below request_seconds",
    )
    image_cache_bytes: int = Field(default=512 * 2**20, ge=0, description="Decoded images kept to answer by image_id")
    preview_side: int = Field(default=1024, ge=64, le=4096, description="Longest side of a preview")
    map_side: int = Field(default=512, ge=64, le=4096, description="Longest side of a map drawn as PNG")

    @model_validator(mode="after")
    def _within_a_request(self) -> Self:
        for stages in (("reader_wait_seconds", "reader_seconds"), ("answer_seconds",)):
            if sum(getattr(self, name) for name in stages) >= self.request_seconds:
                given = " plus ".join(f"{name}={getattr(self, name):g}" for name in stages)
                raise ValueError(
                    f"{given} must be below request_seconds={self.request_seconds:g}, after which nobody waits for the "
                    "answer: lower what is too long, or raise request_seconds and Serve's request_timeout_s alike"
                )
        return self


class IndexArgs(BaseModel):
    """An index that jobs.index built, and the model of ``bundles`` that it was built with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    model: str


class PacsArgs(BaseModel):
    """A PACS that studies may be fetched from, by DICOMweb. Clients name it; no address of theirs is ever fetched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(
        pattern=r"^https?://[^/@\s]+(/[^@?#\s]*)?$", description="Root of its DICOMweb services, without credentials"
    )
    authorization: str = Field(
        default="",
        pattern=r"^\w*$",
        description="Environment variable that holds the value of the Authorization header, such as 'Bearer ...'",
    )
    certificates: str = Field(default="", description="File of the authorities that sign its certificate; or the usual")
    seconds: float = Field(
        default=30.0, gt=0.0, description="Time to fetch or store; with answer_seconds below request_seconds"
    )
    at_once: int = Field(default=4, ge=1, description="Requests of a web replica that talk to it at once; others wait")
    store: bool = Field(default=False, description="Whether results may be stored there")


class AppArgs(BaseModel):
    """Arguments of ``serve.app:build``, under ``args:`` of a Serve config file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundles: dict[str, str] = Field(min_length=1, description="Name to folder or URL of each bundle; first is default")
    shelf: dict[str, str] = Field(
        default={}, description="Further bundles that share replicas, loaded when asked and dropped for others"
    )
    shelf_models: int = Field(default=2, ge=1, description="Bundles of the shelf that one replica holds at a time")
    indexes: dict[str, IndexArgs] = Field(default={}, description="Indexes by name that /v1/retrieve can search")
    pacs: dict[str, PacsArgs] = Field(default={}, description="PACS by name that studies may be fetched from")
    examples: str = Field(default="", description="Folder with examples.json and the image files that it names")
    limits: Limits = Limits()
    tracing: str = Field(default="", description="package.module:function that sets OpenTelemetry's tracer provider")
    max_batch_size: int = Field(
        default=4,
        ge=1,
        description="Images that a model's passes through its encoder take together: 4 fill a CPU, a GPU takes more",
    )
    cached_images: int = Field(default=256, ge=0, description="Images whose features a model replica keeps")
    cached_prompts: int = Field(default=4096, ge=1, description="Prompts whose features a model replica keeps")
    threads: int = Field(
        default=2,
        ge=1,
        description="Torch threads of a model replica on the CPU: all for a pass alone, one for each of several",
    )
    cpus_per_replica: float = Field(default=0.5, ge=0.0, description="CPUs that Ray sets aside for each replica")
    gpus_per_replica: float = Field(default=0.0, ge=0.0, description="GPUs of each model replica; 0 runs on the CPU")
