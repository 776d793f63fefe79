"""From rows of examples to a training batch."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import torch

from rayzero.alignment.base import Batch
from rayzero.encoders.text import TextEncoder
from rayzero.studies.examples import stacked


def collate(examples: pa.Table, text: TextEncoder, *, cached: bool) -> Batch:
    """B rows as a batch: each distinct sentence once, and which image's study says it.

    ``cached`` tells whether ``data`` holds encoder features (N, C) or pixels (1, R, R).
    """
    said = examples.column("sentences").to_pylist()
    distinct = sorted({sentence for sentences in said for sentence in sentences})
    if not distinct:
        raise ValueError("no study of this batch has a sentence: check the lake's reports")
    column = {sentence: index for index, sentence in enumerate(distinct)}
    positives = torch.zeros(len(said), len(distinct), dtype=torch.bool)
    for row, sentences in enumerate(said):
        positives[row, [column[sentence] for sentence in sentences]] = True
    images = torch.from_numpy(stacked(examples))
    return Batch(
        texts=text.tokenize(distinct),
        text_ids=torch.tensor([text_id(sentence) for sentence in distinct]),
        positives=positives,
        pixels=None if cached else images,
        features=images if cached else None,
    )


def text_id(sentence: str) -> int:
    """A 63-bit name of a sentence that is the same in every process and run."""
    return int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8]) >> 1
