"""The HTTP interface: routes, their forms, and what they answer. serve/README.md tells it to a client."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Path, Query, Request, UploadFile
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline
from starlette.formparsers import MultiPartParser
from starlette.types import ASGIApp

import rayzero
from rayzero.config import Companion
from serve.batches import NDJSON, answer_batch, read_addresses, read_texts
from serve.dicom_results import DICOM, to_dicom, to_file
from serve.examples import ExampleStudy
from serve.gate import Gate
from serve.images import Plane, Window
from serve.meters import request_id
from serve.pacs import UID, Address
from serve.problems import MEDIA_TYPE, Problem, install
from serve.retrieval import retrieve as search
from serve.schemas import (
    NOTICE,
    BatchLine,
    DicomResult,
    ExampleInfo,
    ExampleList,
    IndexList,
    MapFormat,
    ModelList,
    PacsInfo,
    PacsList,
    ProblemDocument,
    QueryResponse,
    RetrieveResponse,
    StoredObject,
)
from serve.service import Question, Service, preview_path
from serve.subjects import Source

_DESCRIPTION = f"""Zero-shot findings in chest films and CT: send an image and findings in words, get scores and maps.

**{NOTICE}** Send de-identified images only. Errors are RFC 9457 problem documents."""

# Room for the text fields of a form beside the file.
_FORM_BYTES = 2**20

_PROBLEM = {"model": ProblemDocument, "content": {MEDIA_TYPE: {}}}
_PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys((401, 404, 408, 413, 415, 422, 429, 503), _PROBLEM)
_PACS_PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys((409, 502, 504), _PROBLEM)


async def _service(request: Request) -> Service:
    # Asynchronous, for FastAPI would call it in a thread.
    service: Service = request.app.state.service
    return service


Answers = Annotated[Service, Depends(_service)]
Upload = Annotated[
    UploadFile | None,
    File(description="A DICOM, PNG or JPEG file of one radiograph; a NIfTI file or a zip of one DICOM CT series"),
]
ImageId = Annotated[
    str | None, Form(max_length=64, description="An image_id from an earlier answer or an example, instead of a file")
]
Companion_ = Annotated[UploadFile | None, File(description="A further film of the study, for models that read it")]
CompanionId = Annotated[str | None, Form(max_length=64, description="The same by its image_id")]
ModelName = Annotated[str | None, Form(description="Which model; the default one when absent")]
Prompts = Annotated[
    list[str] | None,
    Form(
        description="Findings or sentences: a repeated field, or one JSON list",
        openapi_examples={"list": {"value": ["pleural effusion", "There is a nodule in the left upper lobe"]}},
    ),
]
PromptSet = Annotated[str | None, Form(description="A list of findings that the server keeps, instead of prompts")]
Maps = Annotated[
    list[MapFormat] | None, Form(description="Whether and how maps come back; a repeated field gives several forms")
]
Threshold = Annotated[
    float | None,
    Form(gt=0.0, lt=1.0, description="Threshold on sigmoid(map) for areas; the model's own when absent"),
]
Top = Annotated[int | None, Form(ge=1, description="Only so many findings, likeliest first, and their maps alone")]
Slice = Annotated[
    int | None, Form(ge=0, alias="slice", description="Slice of a volume that png and contour show, from the feet")
]
Pacs = Annotated[
    str | None, Form(description="A PACS from /v1/pacs that has the image, instead of a file", examples=["main"])
]
_UID = "1.2.840.113619.2.55.3"


def _uid(description: str, example: str) -> Any:
    """A form field for a DICOM UID."""
    return Form(max_length=64, pattern=UID, description=description, examples=[example])


Study = Annotated[str | None, _uid("The image's StudyInstanceUID there", _UID)]
Series = Annotated[str | None, _uid("Its SeriesInstanceUID, where the study has several that fit", f"{_UID}.1")]
Instance = Annotated[str | None, _uid("A film's SOPInstanceUID, where the series has several", f"{_UID}.1.1")]
Studies = Annotated[
    list[str] | None,
    Form(
        description="UIDs of images in the pacs, each STUDY, STUDY/SERIES or STUDY/SERIES/INSTANCE: a repeated field, "
        "or one JSON list",
        examples=[[_UID, f"{_UID}/{_UID}.1"]],
    ),
]


async def _address(
    pacs: Pacs = None, study: Study = None, series: Series = None, instance: Instance = None
) -> Address | None:
    if pacs is None:
        if study or series or instance:
            raise Problem(422, "invalid-request", "Name the pacs that has the study.", field="pacs")
        return None
    if study is None:
        raise Problem(422, "invalid-request", "Name the study by its StudyInstanceUID.", field="study")
    if instance is not None and series is None:
        raise Problem(422, "invalid-request", "Name the series of the instance, too.", field="series")
    return Address(pacs, study, series, instance)


InPacs = Annotated[Address | None, Depends(_address)]


async def _image(address: InPacs, file: Upload = None, image_id: ImageId = None) -> Source:
    return _either(await _source(file, image_id), address)


Image = Annotated[Source, Depends(_image)]

router = APIRouter()


@router.get("/healthz", summary="Is the server alive")
async def healthz() -> dict[str, str]:
    """Answers as soon as the process does; needs no token."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can every model answer", responses=_PROBLEMS)
async def readyz(service: Answers) -> dict[str, str]:
    """Runs one real inference on every model."""
    await service.check()
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
async def preview(
    image_id: Annotated[str, Path(max_length=64)],
    service: Answers,
    level: Annotated[float | None, Query(ge=-1e6, le=1e6, description="Centre of the window, in stored values")] = None,
    width: Annotated[float | None, Query(gt=0, le=1e6, description="Width of the window; goes with level")] = None,
) -> Response:
    """An 8-bit greyscale PNG of an image that was queried or is an example.

    A film is windowed as its file says, or by ``level`` and ``width``, cut from the stored values at their full depth.
    """
    if (level is None) != (width is None):
        missing = "level" if level is None else "width"
        raise Problem(422, "invalid-request", "level and width make a window together; send both.", field=missing)
    window = None if level is None or width is None else (level, width)
    return Response(await service.preview(image_id, window), media_type="image/png")


@router.get("/v1/images/{image_id}/slices/{z}.png", summary="One slice of a volume", responses=_PROBLEMS)
async def section(
    image_id: Annotated[str, Path(max_length=64)],
    z: Annotated[int, Path(ge=0)],
    service: Answers,
    window: Annotated[Window, Query(description="Which tissues it shows")] = "lung",
    plane: Annotated[Plane, Query(description="Along which plane; z counts its own slices")] = "axial",
) -> Response:
    """A slice as an 8-bit greyscale PNG: an axial one with the patient's front at the top and left side on the right.

    A coronal slice (counted from the front) and a sagittal one (counted from the patient's right) have the head at
    the top; the front is on the left of a sagittal one.
    """
    return Response(await service.section(image_id, z, window, plane), media_type="image/png")


@router.get("/v1/pacs", summary="Where images may be fetched from", responses=_PROBLEMS)
async def archives(service: Answers) -> PacsList:
    """The PACS that queries take by name."""
    return PacsList(pacs=[PacsInfo(name=name, store=one.args.store) for name, one in service.archives.items()])


@router.post(
    "/v1/query",
    summary="Findings in a radiograph, a study or a CT volume",
    responses={**_PROBLEMS, **_PACS_PROBLEMS},
)
async def query(
    service: Answers,
    image: Image,
    prompts: Prompts = None,
    prompt_set: PromptSet = None,
    lateral: Companion_ = None,
    prior_frontal: Companion_ = None,
    prior_lateral: Companion_ = None,
    lateral_id: CompanionId = None,
    prior_frontal_id: CompanionId = None,
    prior_lateral_id: CompanionId = None,
    model: ModelName = None,
    maps: Maps = None,
    threshold: Threshold = None,
    top: Top = None,
    slice_: Slice = None,
) -> QueryResponse:
    """Scores of findings in one image. A bare finding is put into the model's sentence ("There is ...")."""
    given: dict[Companion, Source] = {
        "lateral": await _source(lateral, lateral_id),
        "prior_frontal": await _source(prior_frontal, prior_frontal_id),
        "prior_lateral": await _source(prior_lateral, prior_lateral_id),
    }
    companions = {name: source for name, source in given.items() if source}
    question = _question(prompts, prompt_set, model, maps, threshold, top, slice_)
    return await service.query(image, question, companions)


@router.post(
    "/v1/batch",
    summary="Findings in many images, streamed",
    responses={**_PROBLEMS, 200: {"model": BatchLine, "content": {NDJSON: {}}}},
    response_class=StreamingResponse,
)
async def batch(
    service: Answers,
    prompts: Prompts = None,
    prompt_set: PromptSet = None,
    files: Annotated[list[UploadFile] | None, File(description="Radiographs or volumes: a repeated field")] = None,
    image_ids: Annotated[list[str] | None, Form(description="A repeated field, or one JSON list")] = None,
    pacs: Pacs = None,
    studies: Studies = None,
    model: ModelName = None,
    maps: Maps = None,
    threshold: Threshold = None,
    top: Top = None,
) -> StreamingResponse:
    """One line of NDJSON for each image as soon as it is done, and one at the end that counts them.

    ``index`` counts files first, then ids, then studies of the PACS.
    """
    sources = [Source(data=await file.read(), patient=True) for file in files or []]
    sources += [Source(image_id=name, patient=True) for name in read_texts(image_ids or [], field="image_ids")]
    sources += [Source(address=address, patient=True) for address in read_addresses(pacs, studies or [])]
    question = _question(prompts, prompt_set, model, maps, threshold, top, None)
    return StreamingResponse(answer_batch(service, sources, question), media_type=NDJSON)


@router.post(
    "/v1/dicom",
    summary="Findings as a DICOM object",
    responses={
        **_PROBLEMS,
        **_PACS_PROBLEMS,
        200: {"content": {DICOM: {"schema": {"type": "string", "format": "binary"}}}},
        201: {"model": StoredObject, "description": "The object lies in the PACS"},
        403: _PROBLEM,
    },
    response_class=Response,
)
async def dicom(
    service: Answers,
    address: InPacs,
    file: Annotated[
        UploadFile | None, File(description="A DICOM file of one radiograph, or a zip of one DICOM CT series")
    ] = None,
    prompts: Prompts = None,
    prompt_set: PromptSet = None,
    model: ModelName = None,
    threshold: Threshold = None,
    result: Annotated[
        DicomResult, Form(description="A segmentation, a parametric map or a structured report")
    ] = DicomResult.seg,
    store: Annotated[bool, Form(description="Whether it is stored in the PACS that has the source")] = False,
) -> Response:
    """An object of the source's own study, which refers to the source's instances and lies where they do."""
    question = _question(prompts, prompt_set, model, [MapFormat.array], threshold, None, None)
    archive = None
    if store:
        if address is None:
            raise Problem(422, "invalid-request", "Only a result about an image in a PACS is stored.", field="store")
        archive = service.archive(address.pacs)
        if not archive.args.store:
            raise Problem(403, "storing-not-allowed", "Ask the operator to allow it for this PACS.", field="store")
    made = await to_dicom(service, _either(await _source(file, None), address), question, result)
    if archive is None:
        return Response(await asyncio.to_thread(to_file, made), media_type=DICOM)
    await archive.store(made)
    stored = StoredObject(
        pacs=archive.name,
        study=made.StudyInstanceUID,
        series=made.SeriesInstanceUID,
        instance=made.SOPInstanceUID,
        request_id=request_id(),
    )
    return Response(stored.model_dump_json(), 201, media_type="application/json")


@router.get("/v1/indexes", summary="What can be searched", responses=_PROBLEMS)
async def indexes(service: Answers) -> IndexList:
    """The indexes that /v1/retrieve takes by name."""
    return IndexList(indexes=list(service.indexes.values()))


@router.post("/v1/retrieve", summary="Search the examples or an index", responses={**_PROBLEMS, **_PACS_PROBLEMS})
async def retrieve(
    service: Answers,
    image: Image,
    text: Annotated[str | None, Form(description="A finding or sentence, instead of an image")] = None,
    model: ModelName = None,
    index: Annotated[str | None, Form(description="A name from /v1/indexes; the examples when absent")] = None,
    count: Annotated[int, Form(ge=1, le=100, description="How many results")] = 10,
) -> RetrieveResponse:
    """Sentences of reports that fit an image, or images that fit a text: of the examples, or of an index."""
    return await search(service, image, text=text, model=model, index=index, count=count)


def create_api(service: Service, *, token: str | None) -> ASGIApp:
    """The ASGI application over ``service``. ``token`` None leaves it open to whoever reaches the address."""
    limits = service.limits
    # Patients' images stay in memory: the parser would spool whatever is larger than this to a temporary file.
    MultiPartParser.spool_max_size = max(limits.file_bytes, limits.volume_bytes, limits.batch_bytes) + 1
    # FastAPI's own /docs loads its script from a content network, which a hospital's machine does not reach.
    app = FastAPIOffline(
        title="RayZero",
        version=rayzero.__version__,
        description=_DESCRIPTION,
        redoc_url=None,
        # It would lead to whatever host the caller named.
        redirect_slashes=False,
        # The framework's own spans, figures and logs hold paths, and with them ids of images, and texts of errors.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    install(app)
    app.include_router(router)
    return Gate(
        app,
        token=token,
        limits=limits,
        held=service.held,
        max_body=service.largest_body() + _FORM_BYTES,
        larger={"/v1/batch": limits.batch_bytes + _FORM_BYTES},
    )


async def _source(file: UploadFile | None, image_id: str | None) -> Source:
    return Source(None if file is None else await file.read(), image_id)


def _either(sent: Source, address: Address | None) -> Source:
    """What was sent, or what lies at ``address``."""
    if address is None:
        return sent
    if sent:
        raise Problem(422, "invalid-request", "Send either an image or the pacs that has it.", field="pacs")
    return Source(address=address)


def _question(
    prompts: list[str] | None,
    prompt_set: str | None,
    model: str | None,
    maps: list[MapFormat] | None,
    threshold: float | None,
    top: int | None,
    slice_: int | None,
) -> Question:
    forms = frozenset(maps or ()) - {MapFormat.none}
    return Question(tuple(prompts or ()), prompt_set, model, forms, threshold, top, slice_)


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
        input=study.kind,
        image_id=study.image_id,
        preview=preview_path(study.image_id),
        file=f"/v1/examples/{entry.id}/file",
        suggested_prompts=list(entry.suggested_prompts),
        sentences=list(entry.sentences),
        report=entry.report,
    )
