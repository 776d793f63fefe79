"""Maps as fields to draw: a patch grid of logits, sampled where it lies on a film or on a plane of a volume.

Values are sigmoid(map), linear between the centres of patches and 0 where the grid does not reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Float = np.ndarray[Any, np.dtype[np.float32]]
Plane = Literal["axial", "coronal", "sagittal"]
Bounds = tuple[float, float]

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")

# Each plane's own axis of (z, y, x), then those of its rows and columns.
_AXES: dict[Plane, tuple[int, int, int]] = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
# The longest side of a field: a grid of at most 64 cells a side carries no finer detail.
_SIDE = 256


@dataclass(frozen=True)
class Grid:
    """A map of logits (h, w) or (d, h, w), the image's ``shape`` and the ``bounds`` of it that the grid covers.

    ``shape`` is (H, W) or (Z, Y, X); ``bounds`` has a from and to for each axis in the same order, in pixels.
    """

    values: Float
    shape: tuple[int, ...]
    bounds: tuple[Bounds, ...]

    def film(self) -> Float:
        """The whole map of a film, its longest side at most 256."""
        return squash(_sample(self.values, self.bounds, _lattice(self.shape)))

    def plane(self, plane: Plane, index: int) -> Float:
        """The map of a volume on one plane as it is shown: the head at the top of coronal and sagittal ones."""
        axis, *others = _AXES[plane]
        at: list[Float] = [np.empty(0, np.float32)] * 3
        at[axis] = np.array([index + 0.5], np.float32)
        for other, places in zip(others, _lattice(tuple(self.shape[other] for other in others)), strict=True):
            at[other] = places
        field = squash(_sample(self.values, self.bounds, at)).squeeze(axis)
        return field if plane == "axial" else field[::-1]

    def at(self, point: tuple[float, ...]) -> float:
        """sigmoid(map) at a point of the image, in pixels, in the order of ``shape``."""
        places = [np.array([place], np.float32) for place in point]
        return float(squash(_sample(self.values, self.bounds, places)).reshape(-1)[0])


def plane_index(plane: Plane, cursor: tuple[int, int, int]) -> int:
    """Where along its own axis the plane through ``cursor`` (z, y, x) lies."""
    return cursor[_AXES[plane][0]]


def plane_count(plane: Plane, shape: tuple[int, ...]) -> int:
    """How many planes a volume of ``shape`` (Z, Y, X) has."""
    return shape[_AXES[plane][0]]


def plane_size(plane: Plane, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> tuple[float, float]:
    """Width and height of a plane in mm."""
    _, row, column = _AXES[plane]
    return shape[column] * spacing_mm[column], shape[row] * spacing_mm[row]


def on_plane(plane: Plane, shape: tuple[int, ...], cursor: tuple[int, int, int]) -> tuple[float, float]:
    """Where ``cursor`` (z, y, x) lies on a plane as it is shown: shares of its width and height."""
    _, row, column = _AXES[plane]
    x, y = (cursor[column] + 0.5) / shape[column], (cursor[row] + 0.5) / shape[row]
    return x, y if plane == "axial" else 1.0 - y


def from_plane(
    plane: Plane, shape: tuple[int, ...], cursor: tuple[int, int, int], x: float, y: float
) -> tuple[int, int, int]:
    """``cursor`` (z, y, x) moved to the point of a plane at shares ``x`` and ``y`` of its width and height."""
    _, row, column = _AXES[plane]
    moved = list(cursor)
    for axis, share in ((column, x), (row, y if plane == "axial" else 1.0 - y)):
        moved[axis] = min(max(int(share * shape[axis]), 0), shape[axis] - 1)
    return moved[0], moved[1], moved[2]


def _lattice(shape: tuple[int, ...]) -> list[Float]:
    """Places at which an image of ``shape`` is sampled along each axis, in pixels."""
    scale = min(1.0, _SIDE / max(shape))
    counts = [max(1, round(size * scale)) for size in shape]
    return [
        ((np.arange(count) + 0.5) * (size / count)).astype(np.float32)
        for count, size in zip(counts, shape, strict=True)
    ]


def _sample(values: Float, bounds: tuple[Bounds, ...], places: list[Float]) -> Float:
    """``values`` at the product of ``places``, one axis after the other; -inf beyond ``bounds``."""
    out = values.astype(np.float32)
    outside = np.zeros((1,) * values.ndim, dtype=bool)
    for axis, ((low, high), at) in enumerate(zip(bounds, places, strict=True)):
        cells = values.shape[axis]
        where = np.clip((at - low) / (high - low) * cells - 0.5, 0.0, cells - 1.0)
        below = np.minimum(where.astype(int), max(cells - 2, 0))
        share = (where - below).astype(np.float32)
        along = [1] * values.ndim
        along[axis] = -1
        share = share.reshape(along)
        above = np.minimum(below + 1, cells - 1)
        out = np.take(out, below, axis) * (1.0 - share) + np.take(out, above, axis) * share
        outside = outside | ((at < low) | (at > high)).reshape(along)
    return np.where(outside, np.float32(-np.inf), out)


def squash(logits: Float) -> Float:
    """The sigmoid of logits, safe for large magnitudes."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float32)
