"""From rows of examples to a training batch."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pyarrow as pa
import torch

from rayzero.alignment.base import Batch
from rayzero.config import DataConfig
from rayzero.encoders.text import TextEncoder
from rayzero.studies.examples import stacked, stacked_pixels

_SENTENCE_END = re.compile(r"(?<=[.?!])\s+")


def collate(
    examples: pa.Table, text: TextEncoder, data: DataConfig, *, cached: bool, seed: int = 0, step: int = 0
) -> Batch:
    """B rows as a batch, with the texts that ``data.texts`` asks for.

    ``cached`` tells whether ``data`` holds encoder features or images. Texts are drawn by (seed, step, study), so
    the draw depends neither on the number of processes nor on what a resumed run did before. Raises ValueError
    when no text can be made.
    """
    if data.texts == "sentences":
        texts, positives = _distinct_sentences(examples)
    else:
        texts = [_draw(row, data, seed, step) for row in examples.select(_TEXT_COLUMNS).to_pylist()]
        positives = torch.tensor([[one == other for other in texts] for one in texts])
        studies = examples.column("study_id").to_pylist()
        positives |= torch.tensor([[one == other for other in studies] for one in studies])
    images = torch.from_numpy(stacked(examples))
    pixels = stacked_pixels(examples) if cached else None
    present = examples.column("present").to_pylist()
    return Batch(
        texts=text.tokenize(texts),
        text_ids=torch.tensor([text_id(one) for one in texts]),
        positives=positives,
        pixels=(None if pixels is None else torch.from_numpy(pixels)) if cached else images,
        features=images if cached else None,
        present=torch.tensor(present) if present[0] else None,
        said=_said(examples) if data.texts == "sentence" else None,
    )


def text_id(text: str) -> int:
    """A 63-bit name of a text that is the same in every process and run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


_TEXT_COLUMNS = ["study_id", "sentences", "report"]


def _distinct_sentences(examples: pa.Table) -> tuple[list[str], torch.Tensor]:
    said = examples.column("sentences").to_pylist()
    distinct = sorted({sentence for sentences in said for sentence in sentences})
    if not distinct:
        raise ValueError("no study of this batch has a sentence: check the lake's reports")
    column = {sentence: index for index, sentence in enumerate(distinct)}
    positives = torch.zeros(len(said), len(distinct), dtype=torch.bool)
    for row, sentences in enumerate(said):
        positives[row, [column[sentence] for sentence in sentences]] = True
    return distinct, positives


def _said(examples: pa.Table) -> torch.Tensor:
    """The ids of all sentences of each study (B, K), padded with -1."""
    rows = [[text_id(one) for one in said] for said in examples.column("sentences").to_pylist()]
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])


def _draw(row: dict[str, object], data: DataConfig, seed: int, step: int) -> str:
    """The text of one study at one step."""
    parts = _SENTENCE_END.split(str(row["report"]).strip()) if data.texts == "report" else row["sentences"]
    assert isinstance(parts, list)
    parts = [part for part in parts if part.strip()]
    if not parts:
        raise ValueError(f"study {row['study_id']} has no {data.texts} to align with: check the lake's reports")
    rng = np.random.default_rng([seed, step, text_id(str(row["study_id"]))])
    count = {"sentence": 1, "caption": data.caption_sentences}.get(data.texts, len(parts))
    return " ".join(parts[index] for index in rng.permutation(len(parts))[:count])
