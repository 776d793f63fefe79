"""Boxes and masks of a corpus onto the images that were read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Image, Mask, Region

Box = tuple[float, float, float, float]


def box_from_corner(x: float, y: float, width: float, height: float) -> Box:
    """The box (x0, y0, x1, y1) of a corner and a size. Raises ValueError when the size is not positive."""
    return checked_box(x, y, x + width, y + height)


def checked_box(x0: float, y0: float, x1: float, y1: float) -> Box:
    """The four numbers as a box. Raises ValueError when it has no area."""
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) has no area")
    return x0, y0, x1, y1


def union_of_relative_runs(runs: Iterable[str], size: tuple[int, int]) -> Mask:
    """The union of masks in SIIM-ACR's coding, as a mask of ``size`` (H, W).

    Each of ``runs`` is "gap length gap length ...", counted down the columns from the left; a gap begins where the
    run before it ended (datasets spec, 3.4). Raises ValueError for an odd or negative number, or beyond the image.
    """
    height, width = size
    spans: list[tuple[int, int]] = []
    for text in runs:
        numbers = [int(number) for number in text.split()]
        if len(numbers) % 2 or min(numbers, default=0) < 0:
            raise ValueError(f"the mask {text[:40]!r} is not pairs of gap and length")
        ends = list(accumulate(numbers))
        if ends and ends[-1] > height * width:
            raise ValueError(f"the mask runs to pixel {ends[-1]}, the image of {height}x{width} has {height * width}")
        spans += [(start, end) for start, end in zip(ends[0::2], ends[1::2], strict=True) if start < end]
    if not spans:
        return Mask(size=size, counts=(height * width,))
    # Lesions are small: only the columns that they touch are drawn.
    left, right = min(spans)[0] // height, (max(end for _, end in spans) - 1) // height + 1
    columns = np.zeros((right - left + 2) * height, dtype=np.int8)  # an empty column on either side
    for start, end in spans:
        columns[start - (left - 1) * height : end - (left - 1) * height] = 1
    rows, edges = np.nonzero(np.diff(columns.reshape(-1, height).T, axis=1))
    positions = rows * width + left + edges
    # A run to the right margin and one from the left margin of the next row are one run.
    joined = np.flatnonzero(positions[1:-1:2] == positions[2::2]) * 2 + 1
    positions = np.delete(positions, np.concatenate([joined, joined + 1]))
    counts = np.diff(np.concatenate([[0], positions, [height * width]]))
    return Mask(size=size, counts=tuple(int(n) for n in (counts if counts[-1] else counts[:-1])))


def place(
    study_id: str, regions: Sequence[Region], images: Sequence[Image], frames: Mapping[str, tuple[int, int] | None]
) -> tuple[tuple[Region, ...], list[Quarantined]]:
    """The regions that fit the images that were read, boxes cut to the image; and an entry for each that does not.

    ``frames`` is the size (height, width) in which the corpus measured the regions of an image, where it says so:
    on a resized copy of the image they would lie in the wrong place.
    """
    by_id = {image.image_id: image for image in images}
    kept: list[Region] = []
    lost: list[Quarantined] = []
    for region in regions:
        try:
            kept.append(_placed(region, by_id.get(region.image_id), frames.get(region.image_id)))
        except ValueError as error:
            reason = f"the region {region.phrase!r} {error}"
            lost.append(Quarantined(study_id=study_id, file=region.image_id, stage="region", reason=reason))
    return tuple(kept), lost


def _placed(region: Region, image: Image | None, frame: tuple[int, int] | None) -> Region:
    if image is None:
        raise ValueError("is on an image that was not read")
    height, width = image.shape[-2:]
    sizes = (
        ("measured on", frame, (height, width)),
        ("a mask of", region.mask.size if region.mask else None, image.shape),
    )
    for what, size, expected in sizes:
        if size and size != expected:
            found, has = ("x".join(map(str, numbers)) for numbers in (size, expected))
            raise ValueError(f"is {what} {found} pixels, the image has {has}: ingest the published images")
    if region.box is None:
        return region
    x0, y0, x1, y1 = region.box
    box = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"lies outside the image of {height}x{width}")
    return replace(region, box=box)
