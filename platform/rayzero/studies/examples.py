"""Examples: what a training step consumes, one row per image (or study, or volume) with its report and labels.

``data`` holds float16 bytes of ``shape``: the prepared image as ``rayzero.alignment.base.Batch`` describes it, or in
its place the features that a frozen encoder gave for it; then ``pixels`` keeps the image where a system wants both.
The two are interchangeable everywhere downstream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayzero.config import Companion, DataConfig, Input
from rayzero.reports.extraction.styles import NORMAL
from rayzero.studies.augmentation import Augmentation
from rayzero.studies.preprocess import Geometry, prepare
from rayzero.studies.study import Image, Study, View
from rayzero.studies.volume_preprocess import VolumeGeometry, prepare_volume

Array = np.ndarray[Any, np.dtype[np.float32]]
FindStudy = Callable[[str], Study | None]
"""Looks up a study by its id: how an example comes by its prior."""

EXAMPLES = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
        pa.field("shape", pa.list_(pa.int32()), nullable=False),
        pa.field("pixels", pa.large_binary()),
        pa.field("pixels_shape", pa.list_(pa.int32())),
        # Which views of a study there are; empty unless the example is a study.
        pa.field("present", pa.list_(pa.bool_()), nullable=False),
        pa.field("sentences", pa.list_(pa.string()), nullable=False),
        pa.field("report", pa.string(), nullable=False),
        pa.field("labels", pa.map_(pa.string(), pa.int8()), nullable=False),
    ]
)

COMPANIONS: tuple[Companion, ...] = ("lateral", "prior_frontal", "prior_lateral")
"""The views of a study example after the current frontal, in this order."""


def examples_of(
    studies: Iterable[Study],
    data: DataConfig,
    resolution: int,
    find: FindStudy,
    augmentation: Augmentation | None = None,
) -> pa.Table:
    """One row per example of ``studies``; ``data`` is the prepared image, changed by ``augmentation``.

    ``find`` gives the prior studies that ``data.input=study`` asks for.
    """
    rows: list[dict[str, Any]] = []
    side, laid = resolution, data
    if augmentation:
        side = augmentation.prepared_at(resolution)
        if data.augmentation.crop < 1.0:
            # A random square of the whole film, in place of the centred one.
            laid = data.model_copy(update={"crop": 1.0})
    for study in studies:
        for image in admitted(study.images, data):
            pixels, present = _example(study, image, laid, side, find)
            if augmentation:
                pixels = augmentation(study, image.image_id, pixels, present, resolution)
            rows.append(
                {
                    "study_id": study.study_id,
                    "image_id": image.image_id,
                    "data": pixels.astype(np.float16).tobytes(),
                    "shape": list(pixels.shape),
                    "present": present,
                    "sentences": _texts(study, data),
                    "report": study.report.text,
                    "labels": list(study.labels.items()),
                }
            )
    return pa.Table.from_pylist(rows, schema=EXAMPLES)


def admitted(images: Iterable[Image], data: DataConfig) -> Iterator[Image]:
    """The images of a study that give an example each."""
    views = admitted_views(data)
    return (image for image in images if image.view in views)


def admitted_views(data: DataConfig) -> tuple[View, ...]:
    """The views whose images give an example each: a study is built around its frontal radiograph."""
    views: dict[Input, tuple[View, ...]] = {"radiograph": data.views, "study": ("frontal",), "volume": ("volume",)}
    return views[data.input]


def study_views(study: Study, frontal: Image, data: DataConfig, find: FindStudy) -> list[Image | None]:
    """The current frontal and its companions in the order of ``COMPANIONS``; None where there is no such image.

    Companions that ``data.companions`` leaves out are None, too.
    """
    wants_prior = any(name.startswith("prior") for name in data.companions)
    prior = find(study.prior_study_id) if study.prior_study_id and wants_prior else None
    found: dict[Companion, Image | None] = {
        "lateral": study.image("lateral"),
        "prior_frontal": prior.image("frontal") if prior else None,
        "prior_lateral": prior.image("lateral") if prior else None,
    }
    return [frontal, *(found[name] if name in data.companions else None for name in COMPANIONS)]


def prepare_views(views: list[Image | None], data: DataConfig, resolution: int) -> tuple[Array, list[bool]]:
    """The views of a study as (V, 1, R, R), zeros where there is none, and which there are."""
    pixels = np.zeros((len(views), 1, resolution, resolution), dtype=np.float32)
    for index, view in enumerate(views):
        if view is not None:
            pixels[index] = prepare(view, data, resolution)[0]
    return pixels, [view is not None for view in views]


def with_features(examples: pa.Table, features: Array, *, keep_pixels: bool) -> pa.Table:
    """``examples`` with ``features`` (B, ...) in place of the images, which ``keep_pixels`` keeps beside them."""
    cells = [array.astype(np.float16).tobytes() for array in features]
    columns = {name: examples.column(name) for name in EXAMPLES.names}
    if keep_pixels:
        columns |= {"pixels": columns["data"], "pixels_shape": columns["shape"]}
    columns |= {
        "data": pa.array(cells, pa.large_binary()),
        "shape": pa.array([list(features.shape[1:])] * len(cells), pa.list_(pa.int32())),
    }
    return pa.table(columns, schema=EXAMPLES)


def stacked(examples: pa.Table) -> Array:
    """``data`` of all rows as one float32 array (B, ...)."""
    return _stack(examples, "data", "shape")


def stacked_pixels(examples: pa.Table) -> Array | None:
    """The images kept beside cached features as one float32 array (B, ...), or None where none were kept."""
    return None if examples.column("pixels").null_count else _stack(examples, "pixels", "pixels_shape")


def geometry_of(shape: Sequence[int], spacing_mm: Sequence[float], data: DataConfig) -> Geometry | VolumeGeometry:
    """How an image of ``shape`` and ``spacing_mm`` is laid on the input, told without pixels; of a study, the frontal.

    Raises ValueError for a radiograph where ``data.input`` is a volume, and the other way round.
    """
    if data.input == "volume":
        (depth, height, width), (z, y, x) = shape, spacing_mm
        return VolumeGeometry((depth, height, width), (z, y, x), data.volume_shape, data.volume_spacing_mm)
    height, width = shape
    return Geometry(height, width, data.geometry, data.crop)


def _stack(examples: pa.Table, data: str, shape: str) -> Array:
    shapes = examples.column(shape).to_pylist()
    cells = (np.frombuffer(cell.as_buffer(), dtype=np.float16) for cell in examples.column(data))
    return np.stack([c.reshape(s) for c, s in zip(cells, shapes, strict=True)]).astype(np.float32)


def _texts(study: Study, data: DataConfig) -> list[str]:
    chosen = [sentence.text for sentence in study.sentences if sentence.status in data.statuses]
    # Not its own sentences of absence: "There is no edema" on normal studies alone teaches that edema looks normal.
    return chosen or ([NORMAL.text] if study.sentences else [])


def _example(
    study: Study, image: Image, data: DataConfig, resolution: int, find: FindStudy
) -> tuple[Array, list[bool]]:
    if data.input == "volume":
        return prepare_volume(image, data)[0], []
    if data.input == "study":
        return prepare_views(study_views(study, image, data, find), data, resolution)
    return prepare(image, data, resolution)[0], []
