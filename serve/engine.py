"""One model answering about images, with the features of prompts kept. No Ray and no HTTP here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from rayzero.alignment.base import ImageFeatures, TextFeatures
from rayzero.bundle import Bundle, load_bundle
from rayzero.config import Companion, Config, DataConfig
from rayzero.index import CANDIDATES, VectorIndex
from rayzero.studies.examples import COMPANIONS
from serve.cache import LruCache
from serve.images import Kind

Float = np.ndarray[Any, np.dtype[np.float32]]
Index = np.ndarray[Any, np.dtype[np.int64]]

# Sentences encoded at a time.
_TEXT_BATCH = 64


@dataclass(frozen=True)
class Description:
    """What the web side needs to know of a model. ``checksum`` is that of every file of its bundle."""

    name: str
    system: str
    checksum: str
    template: str
    data: DataConfig
    resolution: int
    map_threshold: float
    card: dict[str, Any]

    @property
    def kind(self) -> Kind:
        """What the image is that it reads."""
        return "volume" if self.data.input == "volume" else "radiograph"

    @property
    def companions(self) -> tuple[Companion, ...]:
        """The further films of a study that it reads."""
        return self.data.companions if self.data.input == "study" else ()


@dataclass(frozen=True)
class ModelInput:
    """One prepared image (1, R, R), volume (1, Z, Y, X), or study (V, 1, R, R) with the ``present`` views."""

    pixels: Float
    present: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Of one subject and T prompts: ``logits`` (T,), ``probabilities`` (T,), and ``maps`` (M, *grid) if asked for.

    ``intervals`` (T, 2) are the 95 % intervals of the probabilities where the bundle has what they take. ``order`` (T,)
    ranks the prompts, likeliest first; ``mapped`` (M,) names the prompt of each map. ``encoded`` counts the sentences
    whose features were not kept.
    """

    logits: Float
    probabilities: Float
    intervals: Float | None
    order: Index
    mapped: Index
    maps: Float | None
    encoded: int


@dataclass(frozen=True)
class Match:
    """An entry of an index that fits, with the system's own score."""

    logit: float
    probability: float
    study_ids: tuple[str, ...]
    sentence: str | None = None
    image_id: str | None = None


class Engine:
    """A loaded bundle. Thread-safe."""

    def __init__(self, name: str, bundle: Bundle, cached_prompts: int) -> None:
        self._bundle = bundle
        self._prompts: LruCache[TextFeatures] = LruCache(cached_prompts)
        # Whole lists: gathering hundreds of rows anew for each request costs more than scoring them.
        self._lists: LruCache[TextFeatures] = LruCache(2 * cached_prompts, lambda text: len(text.pooled))
        self._texts = Lock()
        self.description = describe(name, bundle.config, bundle.card, bundle.checksum)

    @classmethod
    def load(cls, name: str, url: str, device: str, cached_prompts: int) -> Engine:
        """The engine of the bundle at ``url``. Raises BundleError when it is absent, damaged or of another format."""
        return cls(name, load_bundle(url, device), cached_prompts)

    def encode(self, given: Sequence[ModelInput]) -> list[ImageFeatures]:
        """Features of B prepared images or studies, each on its own."""
        present = [one.present for one in given] if given[0].present else None
        features = self._bundle.encode_images([one.pixels for one in given], present)
        # Cloned: a slice would keep the whole batch alive for as long as one image of it is cached.
        return [
            ImageFeatures(features.pooled[i : i + 1].clone(), features.tokens[i : i + 1].clone(), features.grid)
            for i in range(len(given))
        ]

    def answer(self, image: ImageFeatures, prompts: Sequence[str], *, maps: bool, top: int | None = None) -> Answer:
        """Scores of one image and T sentences, each in all the phrasings of the model's evaluation.

        ``maps`` asks for the maps too, of the ``top`` likeliest alone where that is given.
        """
        phrased = self._bundle.phrase(prompts)
        text, encoded = self._encode_prompts(phrased.sentences)
        logits = phrased.mean(self._bundle.score(image, text))[0]
        order = np.argsort(-logits, kind="stable")
        mapped = np.arange(len(prompts)) if top is None else order[:top]
        found = None
        if maps:
            found = self._bundle.similarity_map(image, text.rows(torch.from_numpy(phrased.starts[mapped])))[0]
        calibration = self._bundle.calibration
        intervals = calibration.interval(logits)
        return Answer(
            logits=logits,
            probabilities=calibration.probability(logits).astype(np.float32),
            intervals=None if intervals is None else intervals.astype(np.float32),
            order=order,
            mapped=mapped,
            maps=found,
            encoded=encoded,
        )

    def search_sentences(self, index: VectorIndex, image: ImageFeatures, count: int) -> list[Match]:
        """The ``count`` sentences of ``index`` that the system scores highest among those proposed, best first."""
        rows = index.propose_sentences(image, max(count, CANDIDATES))
        answer = self.answer(image, [index.sentences[row] for row in rows], maps=False)
        return [
            Match(
                float(answer.logits[place]),
                float(answer.probabilities[place]),
                tuple(index.studies[rows[place]]),
                sentence=index.sentences[rows[place]],
            )
            for place in answer.order[:count]
        ]

    def search_images(self, index: VectorIndex, sentence: str, count: int) -> list[Match]:
        """The ``count`` images of ``index`` that the system scores highest for ``sentence``, best first."""
        phrased = self._bundle.phrase([sentence])
        text, _ = self._encode_prompts(phrased.sentences)
        rows = index.propose_images(text.pooled[:1], max(count, CANDIDATES))
        device = self._bundle.model.device
        kept = index.features(rows)
        features = ImageFeatures(kept.pooled.to(device), kept.tokens.to(device), kept.grid)
        logits = phrased.mean(self._bundle.score(features, text))[:, 0]
        found = []
        for place in np.argsort(-logits, kind="stable")[:count]:
            image_id, study_id = index.images[rows[place]]
            probability = float(self._bundle.probability(logits[place]))
            found.append(Match(float(logits[place]), probability, (study_id,), image_id=image_id))
        return found

    def warm(self, prompts: Sequence[str]) -> None:
        """Encode ``prompts`` before anybody asks for them."""
        self._encode_prompts(self._bundle.phrase(prompts).sentences)

    def check(self) -> None:
        """One real inference, nothing cached. Raises RuntimeError when the model does not give finite scores."""
        image = self.encode([_blank(self.description)])[0]
        with self._texts:
            text = self._bundle.encode_prompts(["There is pneumonia"])
        if not np.isfinite(self._bundle.score(image, text)).all():
            raise RuntimeError(f"model {self.description.name} gives scores that are not finite")

    def _encode_prompts(self, prompts: Sequence[str]) -> tuple[TextFeatures, int]:
        """Features of ``prompts``, and how many of them were not kept."""
        key = "\0".join(prompts)
        whole = self._lists.get(key)
        if whole is not None:
            return whole, 0
        # A tokenizer's first call changes it; and who asks for the same meanwhile does not encode it, too.
        with self._texts:
            found = {prompt: self._prompts.get(prompt) for prompt in prompts}
            missing = [prompt for prompt, features in found.items() if features is None]
            for start in range(0, len(missing), _TEXT_BATCH):
                part = missing[start : start + _TEXT_BATCH]
                fresh = self._bundle.encode_prompts(part)
                for row, prompt in enumerate(part):
                    found[prompt] = _row(fresh, row)
                    self._prompts.put(prompt, found[prompt])  # type: ignore[arg-type]
        whole = _stack([features for prompt in prompts if (features := found[prompt]) is not None])
        self._lists.put(key, whole)
        return whole, len(missing)


def describe(name: str, config: Config, card: dict[str, Any], checksum: str) -> Description:
    """What a bundle of that config and card is, whether or not its weights are loaded."""
    return Description(
        name=name,
        system=config.system,
        checksum=checksum,
        template=config.evaluation.prompt,
        data=config.data,
        resolution=config.vision.resolution,
        map_threshold=float(card.get("map_threshold", 0.0)),
        card=card,
    )


def _blank(about: Description) -> ModelInput:
    """An even grey of the shape that the model takes."""
    side = about.resolution
    if about.data.input == "volume":
        return ModelInput(np.zeros((1, *about.data.volume_shape), np.float32))
    if about.data.input == "study":
        views = 1 + len(COMPANIONS)
        return ModelInput(np.full((views, 1, side, side), 0.5, np.float32), (True,) + (False,) * len(COMPANIONS))
    return ModelInput(np.full((1, side, side), 0.5, np.float32))


def _row(features: TextFeatures, row: int) -> TextFeatures:
    """One text without the padding it got from longer neighbours, so that caching cannot change a score."""
    length = int(features.mask[row].nonzero().max()) + 1
    return TextFeatures(
        features.pooled[row].clone(), features.tokens[row, :length].clone(), features.mask[row, :length].clone()
    )


def _stack(rows: Sequence[TextFeatures]) -> TextFeatures:
    longest = max(len(row.mask) for row in rows)
    return TextFeatures(
        pooled=torch.stack([row.pooled for row in rows]),
        tokens=torch.stack([pad(row.tokens, (0, 0, 0, longest - len(row.mask))) for row in rows]),
        mask=torch.stack([pad(row.mask, (0, longest - len(row.mask))) for row in rows]),
    )
