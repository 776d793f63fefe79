"""The HTTP interface: routes, their forms, and what they answer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Path, Request, UploadFile
from fastapi.responses import FileResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.formparsers import MultiPartParser
from starlette.types import ASGIApp

import rayzero
from serve.examples import ExampleStudy
from serve.gate import Gate
from serve.problems import MEDIA_TYPE, Problem, install
from serve.schemas import (
    NOTICE,
    ExampleInfo,
    ExampleList,
    MapFormat,
    ModelList,
    ProblemDocument,
    QueryResponse,
    RetrieveResponse,
)
from serve.service import Service, preview_path

_DESCRIPTION = f"""Zero-shot findings in radiographs: send an image and findings in words, get scores and maps.

**{NOTICE}** Send de-identified images only. Errors are RFC 9457 problem documents."""

# Room for the text fields of a form beside the file.
_FORM_BYTES = 2**20

_PROBLEM = {"model": ProblemDocument, "content": {MEDIA_TYPE: {}}}
_PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys((401, 404, 413, 415, 422, 503), _PROBLEM)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Answers = Annotated[Service, Depends(_service)]
Upload = Annotated[UploadFile | None, File(description="A DICOM, PNG or JPEG file of one radiograph")]
ImageId = Annotated[str | None, Form(description="An image_id from an earlier answer or an example, instead of a file")]
ModelName = Annotated[str | None, Form(description="Which model; the default one when absent")]

router = APIRouter()


@router.get("/healthz", summary="Is the server alive")
async def healthz() -> dict[str, str]:
    """Answers as soon as the process does; needs no token."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can every model answer", responses=_PROBLEMS)
async def readyz(service: Answers) -> dict[str, str]:
    """Runs one real inference on every model."""
    for name, client in service.models.items():
        try:
            await client.check()
        except Problem:
            raise
        except Exception as error:
            detail = f"Model {name} failed its own check ({type(error).__name__})."
            raise Problem(503, "model-unavailable", detail, retry_after_s=5) from error
    return {"status": "ready"}


@router.get("/v1/models", summary="The models and their cards", responses=_PROBLEMS)
async def models(service: Answers) -> ModelList:
    """Names, training data, metrics with intervals and intended use of the models that this server runs."""
    return ModelList(models=service.model_infos())


@router.get("/v1/examples", summary="Example studies", responses=_PROBLEMS)
async def examples(service: Answers) -> ExampleList:
    """Studies that the operator ships to try the server on."""
    return ExampleList(examples=[_example_info(study) for study in service.examples.studies])


@router.get("/v1/examples/{example_id}", summary="One example study", responses=_PROBLEMS)
async def example(example_id: str, service: Answers) -> ExampleInfo:
    """What is known of one example."""
    return _example_info(_example(service, example_id))


@router.get("/v1/examples/{example_id}/file", summary="The file of an example", responses=_PROBLEMS)
async def example_file(example_id: str, service: Answers) -> FileResponse:
    """The image file as it was shipped."""
    return FileResponse(_example(service, example_id).path, media_type="application/octet-stream")


@router.get("/v1/images/{image_id}/preview.png", summary="An image to look at", responses=_PROBLEMS)
async def preview(image_id: Annotated[str, Path(max_length=64)], service: Answers) -> Response:
    """An 8-bit greyscale PNG of an image that was queried or is an example, windowed as its file says."""
    return Response(await service.preview(image_id), media_type="image/png")


@router.post("/v1/query", summary="Findings in an image", responses=_PROBLEMS)
async def query(
    service: Answers,
    prompts: Annotated[
        list[str],
        Form(
            description="Findings or sentences: a repeated field, or one JSON list",
            openapi_examples={"list": {"value": ["pleural effusion", "There is a nodule in the left upper lobe"]}},
        ),
    ],
    file: Upload = None,
    image_id: ImageId = None,
    model: ModelName = None,
    maps: Annotated[MapFormat, Form(description="Whether and how maps come back")] = MapFormat.none,
    threshold: Annotated[
        float | None,
        Form(gt=0.0, lt=1.0, description="Threshold on sigmoid(map) for boxes; the model's own when absent"),
    ] = None,
) -> QueryResponse:
    """Scores of findings in one image. A bare finding is put into the model's sentence ("There is ...")."""
    data = await _bytes(file)
    return await service.query(
        data=data, image_id=image_id, prompts=prompts, model=model, form=maps, threshold=threshold
    )


@router.post("/v1/retrieve", summary="Search the examples", responses={**_PROBLEMS, 409: _PROBLEM})
async def retrieve(
    service: Answers,
    file: Upload = None,
    image_id: ImageId = None,
    text: Annotated[str | None, Form(description="A finding or sentence, instead of an image")] = None,
    model: ModelName = None,
    count: Annotated[int, Form(ge=1, le=100, description="How many results")] = 10,
) -> RetrieveResponse:
    """Sentences of the example reports that fit an image, or example images that fit a text."""
    data = await _bytes(file)
    return await service.retrieve(data=data, image_id=image_id, text=text, model=model, count=count)


def create_api(service: Service, *, token: str | None) -> ASGIApp:
    """The ASGI application over ``service``. ``token`` None leaves it open to whoever reaches the address."""
    limits = service.limits
    max_body = limits.file_bytes + _FORM_BYTES
    # Patients' images stay in memory: the parser would spool whatever is larger than this to a temporary file.
    MultiPartParser.spool_max_size = limits.file_bytes + 1
    # FastAPI's own /docs loads its script from a content network, which a hospital's machine does not reach.
    app = FastAPIOffline(
        title="RayZero",
        version=rayzero.__version__,
        description=_DESCRIPTION,
        max_body_size=max_body,
        redoc_url=None,
    )
    app.state.service = service
    install(app)
    app.include_router(router)
    # Around the application, not among its middleware: FastAPI's own limit stands first there, and answers plain text.
    return Gate(app, token=token, requests=limits.requests, max_body=max_body)


async def _bytes(file: UploadFile | None) -> bytes | None:
    return None if file is None else await file.read()


def _example(service: Service, example_id: str) -> ExampleStudy:
    study = service.examples.by_id(example_id)
    if study is None:
        raise Problem(404, "unknown-example", "GET /v1/examples lists what there is.", field="example_id")
    return study


def _example_info(study: ExampleStudy) -> ExampleInfo:
    entry = study.example
    return ExampleInfo(
        id=entry.id,
        title=entry.title,
        caption=entry.caption,
        image_id=study.image_id,
        preview=preview_path(study.image_id),
        file=f"/v1/examples/{entry.id}/file",
        suggested_prompts=list(entry.suggested_prompts),
        sentences=list(entry.sentences),
        report=entry.report,
    )
