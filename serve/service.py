"""What the server does with a request, apart from HTTP and Ray: read, prepare, ask the model, locate findings."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from threading import Event
from typing import Any, Protocol, TypeVar

from rayzero.bundle import AnyGeometry
from rayzero.config import Companion, nearest
from rayzero.studies.sandbox import Sandbox
from serve import maps
from serve.cache import LruCache
from serve.engine import Answer, Description, Match, ModelInput
from serve.examples import ExampleSet
from serve.findings import Drawing, to_findings
from serve.held import Held
from serve.images import ImageStore, Plane, StoredImage, Window, check_kind, image_id_of, kind_of
from serve.live import Live
from serve.meters import observe_stage, request_id
from serve.pacs import Archive, check_identity
from serve.problems import Problem
from serve.prompts import Prompt, read_prompts, to_prompt
from serve.schemas import Finding, GreyScale, ImageInfo, IndexInfo, MapFormat, ModelInfo, QueryResponse
from serve.settings import Limits, PacsArgs
from serve.subjects import Prepared, Source, Subject, check_companions, to_input
from serve.tracing import stage_span

T = TypeVar("T")

# Of so many it takes less to find the hash than to wake up a thread that does.
_BRIEF_BYTES = 2**20
# Volumes that are drawn at once: a map at native resolution takes hundreds of megabytes.
_VOLUMES_DRAWN = 2


class ModelClient(Protocol):
    """One bundle's model, wherever it runs. Where another takes its place, ``Service.renew`` brings its client."""

    @property
    def description(self) -> Description:
        """What the model is."""

    async def answer(
        self, key: str, given: ModelInput | None, prompts: Sequence[str], *, maps: bool, top: int | None = None
    ) -> Answer | None:
        """Scores of a subject; None when it is not ``given`` and its features are not kept there under ``key``."""

    async def search(
        self, index: str, key: str, given: ModelInput | None, *, sentence: str | None, count: int
    ) -> list[Match] | None:
        """Sentences of an index that fit a subject, or its images that fit a ``sentence``; None as for ``answer``."""

    async def check(self) -> None:
        """One real inference. Raises when it fails."""


@dataclass(frozen=True)
class Question:
    """What is asked of images: ``prompts`` as sent or the name of a ``prompt_set``, and what is wanted of the answer.

    ``slice`` and ``top`` are explained in serve/README.md; ``threshold`` None is the model's own.
    """

    prompts: Sequence[str] = ()
    prompt_set: str | None = None
    model: str | None = None
    forms: frozenset[MapFormat] = frozenset()
    threshold: float | None = None
    top: int | None = None
    slice: int | None = None


@dataclass(frozen=True)
class Asked:
    """A subject with a model's answer about it."""

    subject: Subject
    geometry: AnyGeometry
    answer: Answer


class Service:
    """Answers requests. One instance lives in each web process."""

    def __init__(
        self,
        models: Sequence[ModelClient],
        examples: ExampleSet,
        limits: Limits,
        *,
        live: Live | None = None,
        reader: Sandbox | None = None,
        indexes: Sequence[IndexInfo] = (),
        pacs: Mapping[str, PacsArgs] | None = None,
    ) -> None:
        self.models = OrderedDict((model.description.name, model) for model in models)
        self.examples = examples
        self.limits = limits
        self.live = live or Live()
        self.indexes = {info.name: info for info in indexes}
        self.images = ImageStore(limits, reader)
        self.held = Held(limits.held_bytes)
        self.archives = {name: Archive(name, args, limits) for name, args in (pacs or {}).items()}
        self._prepared: LruCache[Prepared] = LruCache(limits.image_cache_bytes // 8, lambda kept: kept.nbytes)
        self._readers, self._patient = asyncio.Semaphore(limits.readers), asyncio.Semaphore(limits.readers)
        self._volumes_drawn = asyncio.Semaphore(_VOLUMES_DRAWN)
        self._checking: asyncio.Task[None] | None = None

    def model(self, name: str | None) -> ModelClient:
        """The model of that name, the default for None. Raises Problem (404)."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Problem(404, "unknown-model", nearest(name, list(self.models)).capitalize(), field="model")
        return self.models[name]

    async def check(self) -> None:
        """One real inference on every model, which all who ask meanwhile share. Raises Problem (503)."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check())
        # Who asks may go away; the others still wait.
        await asyncio.shield(self._checking)

    async def _check(self) -> None:
        for name, client in list(self.models.items()):
            try:
                await client.check()
            except Problem:
                raise
            except Exception as error:
                detail = f"Model {name} failed its own check ({type(error).__name__})."
                raise Problem(503, "model-unavailable", detail, retry_after_s=5) from error

    def renew(self, client: ModelClient) -> None:
        """From now on ``client`` answers for the model of its name."""
        self.models[client.description.name] = client

    def archive(self, name: str) -> Archive:
        """The PACS of that name. Raises Problem (404)."""
        if name not in self.archives:
            known = nearest(name, list(self.archives)).capitalize() if self.archives else "This server asks no PACS."
            raise Problem(404, "unknown-pacs", known, field="pacs")
        return self.archives[name]

    @asynccontextmanager
    async def opened(self, source: Source, about: Description, clock: Clock) -> AsyncIterator[Source]:
        """``source``, with the file at hand where it lies in a PACS: held as long as the context lasts.

        Raises Problem, as ``Archive.fetch`` does.
        """
        address = source.address
        if address is None:
            yield source
            return
        archive = self.archive(address.pacs)
        if about.kind == "volume" and address.instance is not None:
            detail = f"Model {about.name} reads CT volumes: name a series, not one of its slices."
            raise Problem(422, "invalid-request", detail, field="instance")
        lease = self.held.lease()
        try:
            with clock.stage("fetch"):
                fetched = Source(data=await archive.fetch(address, about.kind, lease), patient=source.patient)
                check_identity(await self.headers(fetched), address)
            yield fetched
        finally:
            lease.end()

    def largest_body(self) -> int:
        """The most bytes that the files of one query may have, by what the models read."""
        abouts = [client.description for client in self.models.values()]
        return max(
            self.limits.volume_bytes if about.kind == "volume" else self.limits.file_bytes * (1 + len(about.companions))
            for about in abouts
        )

    async def image(self, source: Source, field: str = "file") -> StoredImage:
        """The image in a file, or the one read earlier (or shipped as an example) under an id.

        Raises Problem (4xx) when it is not exactly one of the two, the file is unreadable, or the id is unknown.
        """
        if (source.data is None) == (source.image_id is None):
            other = "image_id" if field == "file" else f"{field}_id"
            place = " or pacs with a study" if field == "file" and self.archives else ""
            raise Problem(422, "invalid-request", f"Send either {field} or {other}{place}.", field=field)
        if source.data is not None:
            return await self._file(source.data, field, patient=source.patient)
        assert source.image_id is not None
        stored = self.images.get(source.image_id)
        if stored is not None:
            return stored
        example = self.examples.by_image(source.image_id)
        if example is None:
            detail = "The image is not kept here, or no longer; please send the file again."
            raise Problem(404, "unknown-image", detail, field="image_id" if field == "file" else f"{field}_id")
        return await self._file(await asyncio.to_thread(example.path.read_bytes), field, patient=source.patient)

    async def headers(self, source: Source) -> list[dict[str, Any]]:
        """The DICOM headers of a file, as ``ImageStore.headers``. Raises Problem (422, 503)."""
        data = source.data
        assert data is not None
        return await self._in_turn(lambda: self.images.headers(data), patient=source.patient)

    async def _file(self, data: bytes, field: str, *, patient: bool) -> StoredImage:
        image_id = image_id_of(data) if len(data) < _BRIEF_BYTES else await asyncio.to_thread(image_id_of, data)
        stored = self.images.get(image_id)
        if stored is not None:
            return stored

        def read() -> StoredImage:
            return self.images.add(image_id, self.images.read(data, field=field))

        return await self._in_turn(read, patient=patient)

    async def _in_turn(self, read: Callable[[], T], *, patient: bool) -> T:
        """What ``read`` makes of a file, in a thread, once one of the reading processes is free for it.

        Raises Problem (503) where none is in time, unless it is ``patient``: of those only a few stand in the queue, so
        that one batch does not keep out whoever has a time.
        """
        if patient:
            async with self._patient:
                return await self._in_turn_within(read, None)
        return await self._in_turn_within(read, self.limits.reader_wait_seconds)

    async def _in_turn_within(self, read: Callable[[], T], seconds: float | None) -> T:
        try:
            async with asyncio.timeout(seconds):
                await self._readers.acquire()
        except TimeoutError:
            detail = "Every reading process is busy with other files; try again in a few seconds."
            raise Problem(503, "busy", detail, retry_after_s=5) from None
        reading = asyncio.ensure_future(asyncio.to_thread(read))
        # A thread is not cancelled with the request that waits for it: until it ends, its process is not free.
        reading.add_done_callback(lambda _: self._readers.release())
        return await asyncio.shield(reading)

    async def preview(self, image_id: str, window: tuple[float, float] | None = None) -> bytes:
        """An image as an 8-bit PNG, a film in a level and width of its stored values. Raises Problem (404, 422)."""
        stored = await self.image(Source(image_id=image_id))
        return await asyncio.to_thread(self.images.preview, stored, window)

    async def section(self, image_id: str, index: int, window: Window, plane: Plane) -> bytes:
        """One slice of a volume as an 8-bit PNG. Raises Problem (404)."""
        stored = await self.image(Source(image_id=image_id))
        return await asyncio.to_thread(self.images.section, stored, index, window, plane)

    async def query(
        self, source: Source, question: Question, companions: Mapping[Companion, Source] | None = None
    ) -> QueryResponse:
        """Scores, and on request maps, of findings in one image, volume or study."""
        client = self.model(question.model)
        about = client.description
        clock = Clock(about.name)
        prompts, asked = await self.look(client, source, question, companions or {}, clock)
        drawing = Drawing(question.forms, self.threshold(question, about), question.slice, self.limits.map_side)
        with clock.stage("maps"):
            results = await self._findings(prompts, asked, drawing, question.top)
        return QueryResponse(
            model=about.name,
            checksum=about.checksum,
            request_id=request_id(),
            image=image_info(asked.subject.image),
            companions={name: image_info(one) for name, one in asked.subject.companions.items()},
            threshold=drawing.threshold,
            results=results,
            timings_ms=clock.laps,
        )

    async def _findings(
        self, prompts: Sequence[Prompt], asked: Asked, drawing: Drawing, top: int | None
    ) -> list[Finding]:
        gone = Event()
        described = partial(to_findings, prompts, asked.answer, asked.geometry, drawing, top, gone)
        if asked.answer.maps is None:
            # Sooner done than a thread is woken up.
            return described()
        async with self.drawing(asked.subject):
            try:
                return await asyncio.to_thread(described)
            finally:
                # A thread is not cancelled with the request that waits for it.
                gone.set()

    async def look(
        self,
        client: ModelClient,
        source: Source,
        question: Question,
        companions: Mapping[Companion, Source],
        clock: Clock,
    ) -> tuple[list[Prompt], Asked]:
        """The findings asked, and the model's answer about them. Raises Problem (4xx)."""
        about = client.description
        prompts = self.prompts(question, about)
        subject = await self.subject(source, companions, about, clock)
        _check_slice(question, subject)
        sentences = [prompt.sentence for prompt in prompts]
        asked = await self.ask(client, subject, sentences, maps=bool(question.forms), top=question.top, clock=clock)
        return prompts, asked

    def prompts(self, question: Question, about: Description) -> list[Prompt]:
        """The findings asked, as sentences of the model. Raises Problem (422, 404)."""
        if question.prompt_set is not None:
            if question.prompts:
                detail = "Send either prompts or a prompt_set, not both."
                raise Problem(422, "invalid-request", detail, field="prompt_set")
            findings = self.live.prompt_set(question.prompt_set, about)
        else:
            findings = read_prompts(question.prompts, self.limits)
        return [to_prompt(text, about.template) for text in findings]

    def threshold(self, question: Question, about: Description) -> float:
        """The threshold on sigmoid(map): the request's, the operator's, or the model's own."""
        if question.threshold is not None:
            return question.threshold
        return self.live.thresholds.get(about.name, maps.sigmoid(about.map_threshold))

    async def subject(
        self, source: Source, companions: Mapping[Companion, Source], about: Description, clock: Clock
    ) -> Subject:
        """The images of a request, wherever they are: read, and of the kind that the model reads.

        Raises Problem: 4xx for what was sent, and as ``opened`` does.
        """
        check_companions(companions, about)
        async with self.opened(source, about, clock) as at_hand:
            with clock.stage("read"):
                return await self._read(at_hand, companions, about)

    async def _read(self, source: Source, companions: Mapping[Companion, Source], about: Description) -> Subject:
        given: dict[str, Source] = {"file": source, **{str(name): one for name, one in companions.items()}}
        for field, one in given.items():
            if one.data:
                # Told apart before anything is decoded.
                check_kind(kind_of(one.data), about.kind, field)
        names = list(companions)
        images = await asyncio.gather(self.image(source), *(self.image(companions[name], name) for name in names))
        for field, stored in zip(["file", *names], images, strict=True):
            check_kind(stored.kind, about.kind, field)
        return Subject(images[0], dict(zip(names, images[1:], strict=True)))

    async def ask(
        self,
        client: ModelClient,
        subject: Subject,
        sentences: Sequence[str],
        *,
        maps: bool = False,
        clock: Clock,
        top: int | None = None,
    ) -> Asked:
        """The model's answer about a subject, which is prepared and encoded where it was not before."""

        async def put(given: ModelInput | None) -> Answer | None:
            return await client.answer(subject.key, given, sentences, maps=maps, top=top)

        geometry, answer = await self.put(client.description, subject, put, clock)
        return Asked(subject, geometry, answer)

    async def put(
        self,
        about: Description,
        subject: Subject,
        question: Callable[[ModelInput | None], Awaitable[T | None]],
        clock: Clock,
    ) -> tuple[AnyGeometry, T]:
        """What a model answers to ``question`` about a subject, which is sent along only where it must be."""
        key = f"{about.checksum}/{subject.key}"
        known = self._prepared.get(key)
        new = known is None
        if known is None:
            with clock.stage("prepare"):
                known = await asyncio.to_thread(to_input, subject, about)
            self._prepared.put(key, known)
        with clock.stage("model"):
            # Asked about before, so most likely encoded already: the id is cheaper to send than the image.
            answer = None if new else await question(None)
            if answer is None:
                answer = await question(known.given)
        assert answer is not None, "a model that is given pixels answers"
        return known.geometry, answer

    def model_infos(self) -> list[ModelInfo]:
        """All models, the default first."""
        default = next(iter(self.models))
        return [self._model_info(client.description, default) for client in self.models.values()]

    def drawing(self, subject: Subject) -> asyncio.Semaphore | _Free:
        """A turn to draw maps of a subject: at most a few volumes at once."""
        return self._volumes_drawn if subject.image.kind == "volume" else _Free()

    def _model_info(self, about: Description, default: str) -> ModelInfo:
        return ModelInfo(
            name=about.name,
            system=about.system,
            checksum=about.checksum,
            default=about.name == default,
            input=about.data.input,
            companions=about.companions,
            calibrated="calibration" in about.card,
            prompt_template=about.template,
            map_threshold=self.threshold(Question(), about),
            vocabulary=list(about.card.get("vocabulary", [])),
            card=about.card,
        )


class Clock:
    """Milliseconds spent in each named part of a request."""

    def __init__(self, model: str) -> None:
        self.laps: dict[str, float] = {}
        self._model = model

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done in this context is ``name``: a span of the trace and, where it succeeds, a lap."""
        began = time.perf_counter()
        with stage_span(name, self._model):
            yield
        seconds = time.perf_counter() - began
        self.laps[name] = round(seconds * 1000, 2)
        observe_stage(name, self._model, seconds)


class _Free:
    """A lock that everybody has."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


def image_info(stored: StoredImage) -> ImageInfo:
    """What a client is told of an image."""
    volume = stored.kind == "volume"
    return ImageInfo(
        image_id=stored.image_id,
        kind=stored.kind,
        width=stored.width,
        height=stored.height,
        slices=stored.image.shape[0] if volume else None,
        spacing_mm=stored.image.spacing_mm or None,
        view=stored.image.view,
        grey=None if stored.grey is None else GreyScale(**asdict(stored.grey)),
        preview=preview_path(stored.image_id),
        slice_preview=f"/v1/images/{stored.image_id}/slices/{{z}}.png" if volume else None,
    )


def preview_path(image_id: str) -> str:
    """Where the preview of an image is served."""
    return f"/v1/images/{image_id}/preview.png"


def _check_slice(question: Question, subject: Subject) -> None:
    if question.slice is None:
        return
    if subject.image.kind != "volume":
        raise Problem(422, "invalid-request", "A radiograph has no slices.", field="slice")
    slices = subject.image.image.shape[0]
    if question.slice >= slices:
        raise Problem(422, "invalid-request", f"The volume has slices 0 to {slices - 1}.", field="slice")
