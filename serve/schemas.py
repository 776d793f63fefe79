"""What the server answers, as typed documents. Coordinates are pixels of the image, x to the right, y down.

On a volume z counts axial slices from the feet to the head.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rayzero.config import Companion, Input
from serve.images import Kind

NOTICE = "Research use only. Not for diagnosis."


class MapFormat(StrEnum):
    """How maps come back."""

    none = "none"
    array = "array"
    png = "png"
    contour = "contour"
    mask = "mask"


class DicomResult(StrEnum):
    """Which DICOM object comes back: a segmentation, a parametric map or a structured report."""

    seg = "seg"
    pm = "pm"
    sr = "sr"


class GreyScale(BaseModel):
    """A film's range of stored values, air dark, and the window of them that its preview shows."""

    lowest: int = Field(examples=[0])
    highest: int = Field(examples=[4095])
    level: float = Field(description="Centre of the window", examples=[2048.0])
    width: float = Field(examples=[3600.0])


class ImageInfo(BaseModel):
    """The image that was read. Send ``image_id`` instead of the file to ask more about it."""

    image_id: str = Field(examples=["img-3f0c8a5e1d2b4c6f8a9e7d5c3b1a2f4e"])
    kind: Kind = Field(examples=["radiograph"])
    width: int = Field(examples=[2048])
    height: int = Field(examples=[2500])
    slices: int | None = Field(default=None, description="Axial slices of a volume")
    spacing_mm: tuple[float, ...] | None = Field(
        default=None, description="Row and column step of a film; z, y and x step of a volume; null if not stated"
    )
    view: str = Field(examples=["frontal"])
    grey: GreyScale | None = Field(
        default=None, description="Of a film; null of a volume, which is in Hounsfield units"
    )
    preview: str = Field(description="Path of an 8-bit preview", examples=["/v1/images/img-3f0c.../preview.png"])
    slice_preview: str | None = Field(default=None, description="Path of a volume's slices, with {z} to fill in")


class Peak(BaseModel):
    """A pixel of the image, on slice ``z`` of a volume."""

    x: int
    y: int
    z: int | None = None


class RunLengths(BaseModel):
    """A binary mask of ``size`` as row-major run lengths that begin with the run of zeros."""

    size: tuple[int, ...]
    counts: tuple[int, ...]


class MapData(BaseModel):
    """A map of one finding. Its value at a pixel is a logit; sigmoid of it lies between 0 and 1."""

    shape: tuple[int, ...] = Field(
        description="Rows and columns of the patch grid; of a volume depth, rows and columns", examples=[(16, 16)]
    )
    extent: tuple[int | float, int | float, int | float, int | float] = Field(
        description="Box x0, y0, x1, y1 of the image that the grid covers; it overhangs an image that was padded",
        examples=[(0, 0, 2048, 2500)],
    )
    depth: tuple[float, float] | None = Field(default=None, description="Slices z0, z1 that the grid covers")
    values: str | None = Field(
        default=None, description="maps=array: base64 of little-endian float32 logits, row by row"
    )
    slice: int | None = Field(default=None, description="The slice of a volume that png and contours show")
    png: str | None = Field(
        default=None, description="maps=png: base64 of an 8-bit PNG of sigmoid(map) in the image's aspect"
    )
    contours: list[list[tuple[float, float]]] | None = Field(
        default=None, description="maps=contour: closed lines of x, y at the threshold"
    )
    mask: RunLengths | None = Field(default=None, description="maps=mask: what lies above the threshold")


class Finding(BaseModel):
    """What the model says of one finding."""

    prompt: str = Field(description="The finding as it was sent", examples=["pleural effusion"])
    sentence: str = Field(description="The sentence that was scored", examples=["There is pleural effusion"])
    logit: float = Field(examples=[1.73])
    probability: float = Field(
        description="Calibrated on validation studies where the model says calibrated, else sigmoid of the logit",
        examples=[0.85],
    )
    probability_interval: tuple[float, float] | None = Field(
        default=None,
        description="95 % interval of the calibration behind probability; null where the model has none",
        examples=[(0.78, 0.9)],
    )
    rank: int = Field(description="1 is the likeliest of the findings asked", examples=[1])
    peak: Peak | None = Field(default=None, description="Where the map is highest")
    box: tuple[int, int, int, int] | None = Field(
        default=None, description="x0, y0, x1, y1 around the area above the threshold that holds the peak; null if none"
    )
    slices: tuple[int, int] | None = Field(default=None, description="Slices z0, z1 of that area, half open")
    area_fraction: float | None = Field(
        default=None, description="Share of the image above the threshold", examples=[0.06]
    )
    slice_peaks: list[float] | None = Field(
        default=None, description="Of a volume, the highest sigmoid(map) of every slice, feet first"
    )
    map: MapData | None = None


class QueryResponse(BaseModel):
    """Scores of one image, one entry per finding, in the order of the request, or with ``top`` by rank."""

    model: str = Field(examples=["radzero"])
    checksum: str = Field(description="SHA-256 that identifies the model's bundle")
    request_id: str = Field(default="", description="Names the request in the server's log")
    image: ImageInfo
    companions: dict[str, ImageInfo] = Field(default_factory=dict)
    threshold: float = Field(description="Threshold on sigmoid(map) behind box and area_fraction", examples=[0.5])
    results: list[Finding]
    timings_ms: dict[str, float] = Field(examples=[{"read": 61.0, "prepare": 40.2, "model": 48.9, "maps": 3.1}])
    notice: str = NOTICE


class ModelInfo(BaseModel):
    """A model that this server runs. ``card`` is the bundle's own: data, metrics with intervals, commit."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "radzero", "system": "radzero"}]})

    name: str
    system: str
    checksum: str
    default: bool
    input: Input = Field(description="What it is asked about")
    companions: tuple[Companion, ...] = Field(description="The further films of a study that it reads")
    calibrated: bool = Field(description="Whether probabilities were fitted on validation studies")
    prompt_template: str = Field(description="How a bare finding becomes a sentence", examples=["There is {}"])
    map_threshold: float = Field(description="Default threshold on sigmoid(map)")
    vocabulary: list[str] = Field(description="Findings that the model was evaluated on; any other may be asked too")
    card: dict[str, Any]


class ModelList(BaseModel):
    """The models of this server, the default first."""

    models: list[ModelInfo]
    notice: str = NOTICE


class ExampleInfo(BaseModel):
    """A study that the operator ships to try the server on."""

    id: str
    title: str
    caption: str
    input: Kind
    image_id: str = Field(description="Give this as image_id of a query")
    preview: str
    file: str = Field(description="Path of the file itself")
    suggested_prompts: list[str]
    sentences: list[str]
    report: str


class ExampleList(BaseModel):
    """The examples of this server."""

    examples: list[ExampleInfo]


class Hit(BaseModel):
    """One entry: a sentence with the examples or studies that say it, or an image of one of them."""

    rank: int
    logit: float
    probability: float
    sentence: str | None = None
    image_id: str | None = Field(default=None, description="The lake's name of an indexed image")
    example_ids: list[str] = Field(default_factory=list)
    study_ids: list[str] = Field(default_factory=list)


class RetrieveResponse(BaseModel):
    """The entries of the examples, or of an index, that fit best, best first."""

    model: str
    checksum: str
    query: str = Field(description="image or text", examples=["image"])
    index_size: int
    results: list[Hit]
    notice: str = NOTICE


class IndexInfo(BaseModel):
    """An index that ``/v1/retrieve`` can search, built by jobs.index with one model."""

    name: str
    model: str
    sentences: int
    images: int


class IndexList(BaseModel):
    """The indexes of this server."""

    indexes: list[IndexInfo]


class PacsInfo(BaseModel):
    """A PACS that studies may be fetched from."""

    name: str
    store: bool = Field(description="Whether results may be stored there")


class PacsList(BaseModel):
    """The PACS of this server."""

    pacs: list[PacsInfo]


class StoredObject(BaseModel):
    """A DICOM object that now lies in the PACS."""

    pacs: str
    study: str = Field(description="StudyInstanceUID, the source's own")
    series: str = Field(description="SeriesInstanceUID")
    instance: str = Field(description="SOPInstanceUID")
    request_id: str = ""
    notice: str = NOTICE


class ProblemDocument(BaseModel):
    """An RFC 9457 problem document."""

    type: str = Field(description="Stable name of the problem", examples=["urn:rayzero:problem:unreadable-file"])
    title: str
    status: int
    detail: str
    field: str | None = None
    errors: list[dict[str, str]] | None = None


class BatchLine(BaseModel):
    """One line of a batch's NDJSON: the answer or the problem of one image, or at the end how many there were."""

    index: int | None = None
    answer: QueryResponse | None = None
    problem: ProblemDocument | None = None
    done: int | None = None
    failed: int | None = None
