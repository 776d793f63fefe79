"""Texts of any number encoded a few at a time: the sentences of a large test set number tens of thousands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayzero.alignment.base import TextFeatures

TEXT_BATCH = 256

Float32 = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class EncodedTexts:
    """The features of T texts in their order, in ``parts`` of ``TEXT_BATCH`` and a last one of the rest."""

    parts: tuple[TextFeatures, ...]

    def one(self, place: int) -> TextFeatures:
        """The features of one text."""
        part, row = divmod(place, TEXT_BATCH)
        return self.parts[part].rows(slice(row, row + 1))

    def logits(self, score: Callable[[TextFeatures], Float32], images: int) -> Float32:
        """Logits (images, T), where ``score`` gives those of a part (images, at most ``TEXT_BATCH``)."""
        parts = [score(part) for part in self.parts]
        return np.concatenate(parts, axis=1) if parts else np.zeros((images, 0), dtype=np.float32)


def encode_texts(encode: Callable[[list[str]], TextFeatures], texts: Sequence[str]) -> EncodedTexts:
    """``texts`` by ``encode``, the ``encode_prompts`` of a model or of a bundle."""
    starts = range(0, len(texts), TEXT_BATCH)
    return EncodedTexts(tuple(encode(list(texts[start : start + TEXT_BATCH])) for start in starts))
