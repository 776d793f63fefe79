"""Examples: what a training step consumes, one row per image with its study's sentences and labels.

``data`` holds float16 bytes of ``shape``: either the prepared radiograph (1, R, R) in [0, 1], or the cached
features (N, C) of a frozen encoder. The two are interchangeable everywhere downstream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from rayzero.config import DataConfig
from rayzero.studies.preprocess import prepare
from rayzero.studies.study import Study

EXAMPLES = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
        pa.field("shape", pa.list_(pa.int32()), nullable=False),
        pa.field("sentences", pa.list_(pa.string()), nullable=False),
        pa.field("labels", pa.map_(pa.string(), pa.int8()), nullable=False),
    ]
)


def examples_of(studies: Iterable[Study], data: DataConfig, resolution: int) -> pa.Table:
    """One row per image whose view ``data.views`` admits; ``data`` is the prepared radiograph."""
    rows: list[dict[str, Any]] = []
    for study in studies:
        sentences = [sentence.text for sentence in study.sentences]
        for image in study.images:
            if image.view not in data.views:
                continue
            pixels, _ = prepare(image, data, resolution)
            rows.append(
                {
                    "study_id": study.study_id,
                    "image_id": image.image_id,
                    "data": pixels.astype(np.float16).tobytes(),
                    "shape": list(pixels.shape),
                    "sentences": sentences,
                    "labels": list(study.labels.items()),
                }
            )
    return pa.Table.from_pylist(rows, schema=EXAMPLES)


def with_data(examples: pa.Table, arrays: np.ndarray[Any, Any]) -> pa.Table:
    """``examples`` with ``arrays`` (B, ...) in place of what ``data`` held."""
    cells = [array.astype(np.float16).tobytes() for array in arrays]
    shapes = [list(arrays.shape[1:])] * len(cells)
    return examples.set_column(2, EXAMPLES.field("data"), pa.array(cells, pa.large_binary())).set_column(
        3, EXAMPLES.field("shape"), pa.array(shapes, pa.list_(pa.int32()))
    )


def stacked(examples: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``data`` of all rows as one float32 array (B, ...)."""
    shapes = examples.column("shape").to_pylist()
    cells = (np.frombuffer(cell.as_buffer(), dtype=np.float16) for cell in examples.column("data"))
    return np.stack([c.reshape(s) for c, s in zip(cells, shapes, strict=True)]).astype(np.float32)
