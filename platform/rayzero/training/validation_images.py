"""What the lake says is true of the validation images: labels, regions and reports, read without any pixel."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import pyarrow as pa

from rayzero.config import DataConfig
from rayzero.studies.examples import admitted_views
from rayzero.studies.lake import RowGroup, read_parquet_group
from rayzero.studies.study import Region, Study, View, from_row

Key = tuple[str, str]
"""The study's and the image's id."""

_IMAGE = [f"images.list.element.{name}" for name in ("image_id", "view", "shape", "spacing_mm")]
_STUDY = ["study_id", "patient_id", "corpus", "split", "regions"]


@dataclass(frozen=True)
class Known:
    """One image of ``shape`` and ``spacing_mm``: its study's labels and report, and the findings ``marked`` on it."""

    labels: Mapping[str, int]
    report: frozenset[str]
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    marked: frozenset[str]
    # Masks stay in Arrow's memory: run lengths as Python's numbers take ten times as much.
    _row: pa.Table = field(repr=False)
    _image_id: str

    def regions(self) -> dict[str, list[Region]]:
        """The regions on this image by finding."""
        row = self._row.to_pylist()[0]
        found: dict[str, list[Region]] = {}
        for region in _placed(from_row(row), self._image_id):
            found.setdefault(region.finding, []).append(region)
        return found


@dataclass(frozen=True)
class ValidationImages:
    """The images of a split that give examples."""

    images: Mapping[Key, Known]

    @property
    def findings(self) -> tuple[str, ...]:
        """Every finding with a label or a region, in alphabetical order."""
        return tuple(sorted({name for one in self.images.values() for name in (*one.labels, *one.marked)}))

    def has_both(self) -> bool:
        """Whether some finding is known to be present on one image and absent on another."""
        seen: dict[str, set[int]] = {}
        for one in self.images.values():
            for name, value in one.labels.items():
                seen.setdefault(name, set()).add(value)
        return any({0, 1} <= values for values in seen.values())

    def gallery(self, count: int) -> list[Key]:
        """The first image each of at most ``count`` studies whose report has sentences, in the order of ids.

        The same studies for the same split, whatever their order in it.
        """
        first: dict[str, Key] = {}
        for key in sorted(key for key, one in self.images.items() if one.report):
            first.setdefault(key[0], key)
        drawn = sorted(first, key=lambda name: hashlib.sha256(name.encode()).digest())[:count]
        return [first[name] for name in sorted(drawn)]


def read_validation_images(groups: Sequence[RowGroup], data: DataConfig) -> ValidationImages:
    """The truth of a lake's row groups ``groups``, read once by each process."""
    return _read(tuple(groups), admitted_views(data))


@lru_cache(maxsize=1)
def _read(groups: tuple[RowGroup, ...], views: tuple[View, ...]) -> ValidationImages:
    images: dict[Key, Known] = {}
    for group in groups:
        table = read_parquet_group(group, [*_STUDY, "sentences", "labels", *_IMAGE])
        for place in range(table.num_rows):
            row = table.slice(place, 1).to_pylist(maps_as_pydicts="strict")[0]
            study = from_row({**row, "images": ()})
            for image in (image for image in row["images"] if image["view"] in views):
                images[study.study_id, image["image_id"]] = Known(
                    labels=study.labels,
                    report=study.said,
                    shape=tuple(image["shape"]),
                    spacing_mm=tuple(image["spacing_mm"] or ()),
                    marked=frozenset(region.finding for region in _placed(study, image["image_id"])),
                    _row=table.select(_STUDY).slice(place, 1),
                    _image_id=image["image_id"],
                )
    return ValidationImages(images)


def _placed(study: Study, image_id: str) -> list[Region]:
    return [one for one in study.regions if one.image_id == image_id and (one.box or one.mask)]
