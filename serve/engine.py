"""One model answering about images, with the features of prompts kept. No Ray and no HTTP here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import torch
from torch.nn.functional import pad

from rayzero.alignment.base import ImageFeatures, TextFeatures
from rayzero.bundle import Bundle, BundleError, load_bundle
from rayzero.config import DataConfig
from serve.cache import LruCache

Float = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Description:
    """What the web side needs to know of a model. ``checksum`` identifies its bundle, every file of it."""

    name: str
    system: str
    checksum: str
    template: str
    data: DataConfig
    resolution: int
    map_threshold: float
    card: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """Of one image and T prompts: ``logits`` (T,), ``probabilities`` (T,), and ``maps`` (T, h, w) if asked for."""

    logits: Float
    probabilities: Float
    maps: Float | None


class Engine:
    """A loaded bundle. Not thread-safe: one thread calls it, for a model gains nothing from two."""

    def __init__(self, name: str, bundle: Bundle, checksum: str, cached_prompts: int) -> None:
        self._bundle = bundle
        self._prompts: LruCache[TextFeatures] = LruCache(cached_prompts)
        config = bundle.config
        if config.data.input == "volume":
            raise BundleError(f"model {name}: this server reads radiographs, and the bundle reads CT volumes")
        self.description = Description(
            name=name,
            system=config.system,
            checksum=checksum,
            template=config.evaluation.prompt,
            data=config.data,
            resolution=config.vision.resolution,
            map_threshold=bundle.map_threshold,
            card=bundle.card,
        )

    @classmethod
    def load(cls, name: str, url: str, device: str, cached_prompts: int) -> Engine:
        """The engine of the bundle at ``url``. Raises BundleError when it is absent, damaged or of another format."""
        bundle = load_bundle(url, device)
        with fsspec.open(f"{url.rstrip('/')}/checksums.json", "rb") as file:
            checksum = hashlib.sha256(file.read()).hexdigest()
        return cls(name, bundle, checksum, cached_prompts)

    def encode(self, pixels: Sequence[Float]) -> list[ImageFeatures]:
        """Features of B prepared images (1, R, R), each on its own."""
        features = self._bundle.encode_images(pixels)
        # Cloned: a slice would keep the whole batch alive for as long as one image of it is cached.
        return [
            ImageFeatures(features.pooled[i : i + 1].clone(), features.tokens[i : i + 1].clone(), features.grid)
            for i in range(len(pixels))
        ]

    def answer(self, image: ImageFeatures, prompts: Sequence[str], *, maps: bool) -> Answer:
        """Scores of one image and T sentences, each in all the phrasings of the model's evaluation; and their maps."""
        phrased = self._bundle.phrase(prompts)
        text = self._encode_prompts(phrased.sentences)
        logits = phrased.mean(self._bundle.score(image, text))[0]
        return Answer(
            logits=logits,
            probabilities=self._bundle.probability(logits).astype(np.float32),
            maps=self._bundle.similarity_map(image, text.rows(torch.from_numpy(phrased.starts)))[0] if maps else None,
        )

    def check(self) -> None:
        """One real inference, nothing cached. Raises RuntimeError when the model does not give finite scores."""
        side = self.description.resolution
        image = self.encode([np.full((1, side, side), 0.5, dtype=np.float32)])[0]
        if not np.isfinite(self._bundle.score(image, self._bundle.encode_prompts(["There is pneumonia"]))).all():
            raise RuntimeError(f"model {self.description.name} gives scores that are not finite")

    def _encode_prompts(self, prompts: Sequence[str]) -> TextFeatures:
        found = {prompt: self._prompts.get(prompt) for prompt in prompts}
        missing = [prompt for prompt, features in found.items() if features is None]
        if missing:
            fresh = self._bundle.encode_prompts(missing)
            for row, prompt in enumerate(missing):
                found[prompt] = _row(fresh, row)
                self._prompts.put(prompt, found[prompt])  # type: ignore[arg-type]
        return _stack([features for prompt in prompts if (features := found[prompt]) is not None])


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
