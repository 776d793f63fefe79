"""What the server does with a request, apart from HTTP and Ray: read, prepare, ask the model, locate findings."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rayzero.config import nearest
from rayzero.studies.preprocess import Geometry, prepare
from serve import maps
from serve.cache import LruCache
from serve.engine import Answer, Description
from serve.examples import ExampleSet, ExampleStudy
from serve.images import ImageStore, StoredImage
from serve.problems import Problem
from serve.prompts import Prompt, read_prompts, read_text, to_prompt
from serve.schemas import Finding, Hit, ImageInfo, MapData, MapFormat, ModelInfo, Peak, QueryResponse, RetrieveResponse
from serve.settings import Limits

Float = np.ndarray[Any, np.dtype[np.float32]]
Prepared = tuple[Float, Geometry]


class ModelClient(Protocol):
    """A model, wherever it runs."""

    @property
    def description(self) -> Description:
        """What the model is."""

    async def answer(self, image_id: str, pixels: Float | None, prompts: Sequence[str], *, maps: bool) -> Answer | None:
        """Scores of the image; None when ``pixels`` is not given and the image's features are not kept there."""

    async def check(self) -> None:
        """One real inference. Raises when it fails."""


class Service:
    """Answers requests. One instance lives in each web process."""

    def __init__(self, models: Sequence[ModelClient], examples: ExampleSet, limits: Limits) -> None:
        self.models = OrderedDict((model.description.name, model) for model in models)
        self.examples = examples
        self.limits = limits
        self.images = ImageStore(limits)
        self._prepared: LruCache[Prepared] = LruCache(limits.image_cache_bytes // 8, lambda kept: kept[0].nbytes)

    def model(self, name: str | None) -> ModelClient:
        """The model of that name, the default for None. Raises Problem (404)."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Problem(404, "unknown-model", nearest(name, list(self.models)).capitalize(), field="model")
        return self.models[name]

    async def image(self, data: bytes | None, image_id: str | None) -> StoredImage:
        """The image in ``data``, or the one read earlier (or shipped as an example) under ``image_id``.

        Raises Problem (4xx) when it is not exactly one of the two, the file is unreadable, or the id is unknown.
        """
        if (data is None) == (image_id is None):
            raise Problem(422, "invalid-request", "Send either a file or an image_id.", field="file")
        if data is not None:
            return await asyncio.to_thread(self.images.add, data)
        assert image_id is not None
        stored = self.images.get(image_id)
        if stored is not None:
            return stored
        example = self.examples.by_image(image_id)
        if example is None:
            detail = "The image is not kept here, or no longer; please send the file again."
            raise Problem(404, "unknown-image", detail, field="image_id")
        return await asyncio.to_thread(lambda: self.images.add(example.path.read_bytes()))

    async def preview(self, image_id: str) -> bytes:
        """An image as an 8-bit PNG. Raises Problem (404)."""
        stored = await self.image(None, image_id)
        return await asyncio.to_thread(self.images.preview, stored)

    async def query(
        self,
        *,
        data: bytes | None,
        image_id: str | None,
        prompts: Sequence[str],
        model: str | None,
        form: MapFormat,
        threshold: float | None,
    ) -> QueryResponse:
        """Scores, and on request maps, of findings in one image."""
        client = self.model(model)
        about = client.description
        sentences = [to_prompt(text, about.template) for text in read_prompts(prompts, self.limits)]
        clock = _Clock()
        stored = await self.image(data, image_id)
        clock.lap("read")
        geometry, answer = await self._ask(client, stored, [p.sentence for p in sentences], form, clock)
        cut = maps.sigmoid(about.map_threshold) if threshold is None else threshold
        results = await asyncio.to_thread(self._findings, sentences, answer, geometry, form, cut)
        clock.lap("maps")
        return QueryResponse(
            model=about.name,
            checksum=about.checksum,
            image=image_info(stored),
            threshold=cut,
            results=results,
            timings_ms=clock.laps,
        )

    async def retrieve(
        self, *, data: bytes | None, image_id: str | None, text: str | None, model: str | None, count: int
    ) -> RetrieveResponse:
        """The index's sentences that fit an image, or its images that fit a text, best first."""
        client = self.model(model)
        if text is None:
            hits = await self._sentences(client, await self.image(data, image_id))
        elif data is not None or image_id is not None:
            raise Problem(422, "invalid-request", "Send either a text or an image, not both.", field="text")
        else:
            sentence = to_prompt(read_text(text, "text", self.limits), client.description.template)
            hits = await self._images(client, sentence)
        hits.sort(key=lambda hit: -hit.logit)
        return RetrieveResponse(
            model=client.description.name,
            checksum=client.description.checksum,
            query="image" if text is None else "text",
            index_size=len(hits),
            results=[hit.model_copy(update={"rank": rank}) for rank, hit in enumerate(hits[:count], 1)],
        )

    def model_infos(self) -> list[ModelInfo]:
        """All models, the default first."""
        default = next(iter(self.models))
        return [_model_info(client.description, default) for client in self.models.values()]

    async def _ask(
        self, client: ModelClient, stored: StoredImage, sentences: Sequence[str], form: MapFormat, clock: _Clock
    ) -> tuple[Geometry, Answer]:
        about = client.description
        key = f"{about.name}/{stored.image_id}"
        known = self._prepared.get(key)
        wanted = form is not MapFormat.none
        answer = None
        if known is None:
            known = await asyncio.to_thread(prepare, stored.image, about.data, about.resolution)
            self._prepared.put(key, known)
            clock.lap("prepare")
        else:
            # Asked about before, so most likely encoded already: the id is cheaper to send than the image.
            answer = await client.answer(stored.image_id, None, sentences, maps=wanted)
        pixels, geometry = known
        if answer is None:
            answer = await client.answer(stored.image_id, pixels, sentences, maps=wanted)
        assert answer is not None, "a model that is given pixels answers"
        clock.lap("model")
        return geometry, answer

    def _findings(
        self, prompts: Sequence[Prompt], answer: Answer, geometry: Geometry, form: MapFormat, cut: float
    ) -> list[Finding]:
        findings = []
        for row, prompt in enumerate(prompts):
            finding = Finding(
                prompt=prompt.finding,
                sentence=prompt.sentence,
                logit=float(answer.logits[row]),
                probability=float(answer.probabilities[row]),
            )
            if answer.maps is not None:
                finding = finding.model_copy(update=self._located(answer.maps[row], geometry, form, cut))
            findings.append(finding)
        return findings

    def _located(self, grid: Float, geometry: Geometry, form: MapFormat, cut: float) -> dict[str, Any]:
        found = maps.locate(grid, geometry, maps.logit(cut))
        side = self.limits.map_side
        data = MapData(
            shape=(grid.shape[0], grid.shape[1]),
            extent=maps.extent(geometry),
            values=maps.encode_array(grid) if form is MapFormat.array else None,
            png=maps.encode_png(grid, geometry, side) if form is MapFormat.png else None,
        )
        peak = Peak(x=found.peak[0], y=found.peak[1])
        return {"peak": peak, "box": found.box, "area_fraction": found.area_fraction, "map": data}

    async def _sentences(self, client: ModelClient, stored: StoredImage) -> list[Hit]:
        index = self.examples.sentences
        if not index:
            raise Problem(409, "no-index", "The examples of this server come without sentences to search.")
        _, answer = await self._ask(client, stored, list(index), MapFormat.none, _Clock())
        return [
            Hit(rank=0, logit=float(logit), probability=float(probability), sentence=sentence, example_ids=ids)
            for (sentence, ids), logit, probability in zip(
                index.items(), answer.logits, answer.probabilities, strict=True
            )
        ]

    async def _images(self, client: ModelClient, sentence: Prompt) -> list[Hit]:
        if not self.examples.studies:
            raise Problem(409, "no-index", "This server ships no example images to search.")

        async def hit(study: ExampleStudy) -> Hit:
            stored = await self.image(None, study.image_id)
            _, answer = await self._ask(client, stored, [sentence.sentence], MapFormat.none, _Clock())
            logit, probability = float(answer.logits[0]), float(answer.probabilities[0])
            return Hit(rank=0, logit=logit, probability=probability, example_ids=[study.example.id])

        return list(await asyncio.gather(*map(hit, self.examples.studies)))


class _Clock:
    """Milliseconds spent in each named part of a request."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round((now - self._last) * 1000, 2)
        self._last = now


def image_info(stored: StoredImage) -> ImageInfo:
    """What a client is told of an image."""
    return ImageInfo(
        image_id=stored.image_id,
        width=stored.width,
        height=stored.height,
        view=stored.image.view,
        preview=preview_path(stored.image_id),
    )


def preview_path(image_id: str) -> str:
    """Where the preview of an image is served."""
    return f"/v1/images/{image_id}/preview.png"


def _model_info(about: Description, default: str) -> ModelInfo:
    return ModelInfo(
        name=about.name,
        system=about.system,
        checksum=about.checksum,
        default=about.name == default,
        prompt_template=about.template,
        map_threshold=maps.sigmoid(about.map_threshold),
        vocabulary=list(about.card.get("vocabulary", [])),
        card=about.card,
    )
