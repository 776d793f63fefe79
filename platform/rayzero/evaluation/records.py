"""What one image contributes to an evaluation, small enough to send between machines.

Full-size maps stay where they were computed: a worker reduces each to its peak, two histograms and, for the few
examples that a report shows, the patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from rayzero.evaluation.metrics.segmentation import Histograms
from rayzero.evaluation.metrics.semantic import Assigned

Float32 = np.ndarray[Any, np.dtype[np.float32]]
Real = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Task:
    """What to compute of each image of one of the ``views``.

    ``prompts`` pairs each finding with its prompt, or with each of several; ``sentences`` are the distinct report
    sentences to score; studies in ``examples`` keep a thumbnail and their patch grids. Maps are made of findings where
    they have a region; of those in ``segment`` on every image, with boxes as masks where there are no others; and of
    the ``phrases`` of regions, which are not scored. ``embed`` keeps the image's own vector. Every pixel of every image
    is given to one of the findings ``among``, or to none.
    """

    prompts: tuple[tuple[str, str], ...] = ()
    sentences: tuple[str, ...] = ()
    examples: frozenset[str] = frozenset()
    views: tuple[str, ...] = ("frontal",)
    segment: frozenset[str] = frozenset()
    phrases: tuple[str, ...] = ()
    embed: bool = False
    among: tuple[str, ...] = ()


@dataclass(frozen=True)
class Localised:
    """A finding with a true region on one image: the map's ``peak`` (x, y[, z]) and how it compares.

    ``hit`` and ``chance`` (share of the image in the true region) are None where the region is unknown,
    ``histograms`` without a mask, ``contrast`` unless a phrase was asked, which is ``finding`` then. For examples
    alone: ``grid`` (h, w), the map's logits, on the patch grid of a radiograph or at every pixel of slice ``section``
    of a volume, which ``picture`` shows as a JPEG.
    """

    finding: str
    peak: tuple[int, ...]
    hit: bool | None = None
    chance: float | None = None
    histograms: Histograms | None = None
    contrast: float | None = None
    grid: Float32 | None = field(default=None, repr=False)
    section: int | None = None
    picture: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class ImageScores:
    """One image of ``size`` (H, W) or (Z, Y, X): logits of the prompts (F,) and of the sentences (S,), its regions.

    ``embedding`` (D,) is empty unless it was asked for; ``thumbnail`` is a JPEG, for examples alone. ``assigned`` is
    what pixels were given to the task's findings ``among``.
    """

    study_id: str
    patient_id: str
    image_id: str
    size: tuple[int, ...]
    logits: Real
    sentences: Float32
    regions: tuple[Localised, ...] = ()
    thumbnail: bytes = b""
    view: str = ""
    embedding: Float32 = field(default_factory=lambda: np.zeros(0, dtype=np.float32), repr=False)
    assigned: Assigned | None = field(default=None, repr=False)


_REGION = pa.struct(
    [
        ("finding", pa.string()),
        ("peak", pa.list_(pa.int32())),
        ("hit", pa.bool_()),
        ("chance", pa.float64()),
        ("foreground", pa.binary()),
        ("everything", pa.binary()),
        ("contrast", pa.float64()),
        ("grid", pa.binary()),
        ("rows", pa.int32()),
        ("section", pa.int32()),
        ("picture", pa.binary()),
    ]
)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("study_id", "patient_id", "image_id")),
        ("size", pa.list_(pa.int32())),
        # Arrays travel as their little-endian bytes: float32, and int64 for the histograms.
        ("logits", pa.binary()),
        ("sentences", pa.binary()),
        ("regions", pa.list_(_REGION)),
        ("thumbnail", pa.binary()),
        ("view", pa.string()),
        ("embedding", pa.binary()),
        ("assigned", pa.binary()),
    ]
)


def to_table(records: Sequence[ImageScores]) -> pa.Table:
    """``records`` as an Arrow table of ``SCHEMA``, which Ray Data passes on without pickling."""
    rows = [
        {
            "study_id": one.study_id,
            "patient_id": one.patient_id,
            "image_id": one.image_id,
            "size": one.size,
            "logits": one.logits.astype("<f4").tobytes(),
            "sentences": one.sentences.astype("<f4").tobytes(),
            "regions": [_region_row(region) for region in one.regions],
            "thumbnail": one.thumbnail,
            "view": one.view,
            "embedding": one.embedding.astype("<f4").tobytes(),
            "assigned": None if one.assigned is None else one.assigned.to_bytes(),
        }
        for one in records
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def from_table(table: pa.Table) -> list[ImageScores]:
    """The inverse of ``to_table``."""
    return [
        ImageScores(
            study_id=row["study_id"],
            patient_id=row["patient_id"],
            image_id=row["image_id"],
            size=tuple(row["size"]),
            logits=np.frombuffer(row["logits"], "<f4"),
            sentences=np.frombuffer(row["sentences"], "<f4"),
            regions=tuple(_region(region) for region in row["regions"]),
            thumbnail=row["thumbnail"],
            view=row["view"],
            embedding=np.frombuffer(row["embedding"], "<f4"),
            assigned=None if row["assigned"] is None else Assigned.from_bytes(row["assigned"]),
        )
        for row in table.to_pylist()
    ]


def _region_row(region: Localised) -> dict[str, Any]:
    histograms, grid = region.histograms, region.grid
    return {
        "finding": region.finding,
        "peak": region.peak,
        "hit": region.hit,
        "chance": region.chance,
        "foreground": None if histograms is None else histograms.foreground.astype("<i8").tobytes(),
        "everything": None if histograms is None else histograms.everything.astype("<i8").tobytes(),
        "contrast": region.contrast,
        "grid": None if grid is None else grid.astype("<f4").tobytes(),
        "rows": 0 if grid is None else grid.shape[0],
        "section": region.section,
        "picture": region.picture,
    }


def _region(row: dict[str, Any]) -> Localised:
    counts = [np.frombuffer(row[name], "<i8") for name in ("foreground", "everything") if row[name] is not None]
    return Localised(
        finding=row["finding"],
        peak=tuple(row["peak"]),
        hit=row["hit"],
        chance=row["chance"],
        histograms=Histograms(*counts) if counts else None,
        contrast=row["contrast"],
        grid=None if row["grid"] is None else np.frombuffer(row["grid"], "<f4").reshape(row["rows"], -1),
        section=row["section"],
        picture=row["picture"],
    )
