"""The pointing game: does the peak of a map lie in a box of its finding (datasets spec, section 5.2)?

A region that has no box, as on a volume, is hit inside its mask.

Our lakes hold half-open boxes, x1 and y1 exclusive; the published code compares inclusive pixel corners. A pixel
that is inside one is inside the other, because ingest converts the corners.
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
    """Whether the pixel ``point`` (x, y) lies in one of the half-open ``boxes`` (x0, y0, x1, y1)."""
    x, y = point
    return any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes)


def box_share(boxes: Sequence[Box], height: int, width: int) -> float:
    """Share of an image's pixels inside the union of ``boxes``: the chance that a random pixel is a hit."""
    covered = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        covered[_first(y0) : _first(y1), _first(x0) : _first(x1)] = True
    return float(covered.mean())


def _first(edge: float) -> int:
    """The first pixel index at or after ``edge``."""
    return max(0, math.ceil(edge))
