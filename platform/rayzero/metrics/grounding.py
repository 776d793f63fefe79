"""The pointing game: does the peak of a map lie in a box of its finding (datasets spec, section 5.2)?

A region that has no box, as on a volume, is hit inside its mask.

Published code counts the far edges of a box as inside, x0 <= x <= x1, with the corners as tables give them, which
lakes keep. That is the definition of a hit here, although a lake's box ends before x1 and y1 wherever it is filled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Box = tuple[float, float, float, float]


def first_peak(values: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """The first maximum of a map (H, W) or (Z, Y, X) in row-major order, as (x, y) or (x, y, z)."""
    return tuple(int(index) for index in reversed(np.unravel_index(int(np.argmax(values)), values.shape)))


def inside_any(point: tuple[int, ...], boxes: Sequence[Box]) -> bool:
    """Whether the pixel ``point`` (x, y) lies in or on the edge of one of the ``boxes`` (x0, y0, x1, y1)."""
    x, y = point
    return any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in boxes)


def pointing_hit(
    peak: tuple[int, ...], boxes: Sequence[Box], mask: np.ndarray[Any, np.dtype[np.bool_]] | None
) -> bool | None:
    """Whether ``peak`` (x, y[, z]) is inside its region: one of ``boxes``, or ``mask`` (H, W) or (Z, Y, X) without any.

    None where there is neither.
    """
    if boxes:
        return inside_any(peak, boxes)
    return None if mask is None else bool(mask[peak[::-1]])


def box_share(boxes: Sequence[Box], height: int, width: int) -> float:
    """The chance that a random pixel of the image is ``inside_any`` of ``boxes``."""
    closed = [(x0, y0, math.floor(x1) + 1.0, math.floor(y1) + 1.0) for x0, y0, x1, y1 in boxes]
    return float(boxes_mask(closed, height, width).mean())


def boxes_mask(
    boxes: Sequence[Box], height: int, width: int, *, truncate: bool = False
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The filled union of ``boxes`` (H, W); ``truncate`` cuts corners to whole pixels as published code does."""
    mask = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        edges = [max(0, int(edge)) for edge in (y0, y1, x0, x1)] if truncate else [_first(e) for e in (y0, y1, x0, x1)]
        mask[edges[0] : edges[1], edges[2] : edges[3]] = True
    return mask


def contrast(values: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> float:
    """Signed contrast-to-noise ratio of a map inside against outside a mask, both (H, W).

    (mean in - mean out) / sqrt(variance in + variance out); 0 where it is not defined: a constant map, or a mask of
    no or of all pixels. Its absolute value is the published CNR (datasets spec, section 5.2).
    """
    inside, outside = values[mask].astype(np.float64), values[~mask].astype(np.float64)
    if not len(inside) or not len(outside):
        return 0.0
    noise = math.sqrt(float(inside.var()) + float(outside.var()))
    return float((inside.mean() - outside.mean()) / noise) if noise > 0 else 0.0


def _first(edge: float) -> int:
    """The first pixel index at or after ``edge``."""
    return max(0, math.ceil(edge))
