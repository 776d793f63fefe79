"""Thin curved structures (ribs, vessels, catheters) as points that carry volume.

A tube is a row of points, each with the volume of its piece of tube and the half extents of its section.
Spreading that volume over a flat disc on a film, or a ball in a volume, conserves it exactly, so a film and a
CT agree whatever the direction of the tube and however thin it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .solids import Bools, Floats


@dataclass(frozen=True)
class Tube:
    """``points`` (N, 3) in mm, ``radii`` (N, 3) half extents in mm, ``volume`` (N,) in mm^3, one added ``hu``."""

    points: Floats
    radii: Floats
    volume: Floats
    hu: float
    owner: int = -1

    def keep(self, chosen: Bools) -> Tube:
        """The chosen points only; ``chosen`` is (N,) booleans."""
        return Tube(self.points[chosen], self.radii[chosen], self.volume[chosen], self.hu, self.owner)


def round_tube(path: Floats, radius: float | Floats, hu: float, *, owner: int = -1, step: float = 1.0) -> Tube:
    """A tube of circular section of ``radius`` mm along the polyline ``path`` (N, 3), a point every ``step`` mm.

    ``radius`` is one number or one for each vertex of the path.
    """
    legs = np.linalg.norm(np.diff(path, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(legs)])
    count = max(int(along[-1] / step), 2)
    at = (np.arange(count) + 0.5) * along[-1] / count
    points = np.stack([np.interp(at, along, path[:, k]) for k in range(3)], axis=1)
    r = np.interp(at, along, np.broadcast_to(np.asarray(radius, float), along.shape))
    return Tube(points, np.repeat(r[:, None], 3, axis=1), np.pi * r**2 * along[-1] / count, hu, owner)


def flat_tube(path: Floats, height: float, width: float, hu: float, *, owner: int = -1) -> Tube:
    """A strap along ``path`` (N, 3): half ``height`` mm along z and half ``width`` mm across its horizontal course."""
    step = np.gradient(path, axis=0)
    length = np.linalg.norm(step, axis=1)
    course = np.abs(step[:, :2]) / np.maximum(np.linalg.norm(step[:, :2], axis=1, keepdims=True), 1e-6)
    radii = np.column_stack([course[:, 1] * width + 0.9, course[:, 0] * width + 0.9, np.full(len(path), height)])
    return Tube(path, radii, np.pi * height * width * length, hu, owner)


def splat(points: Floats, radii: Floats, volume: Floats, axes: list[Floats]) -> Floats:
    """Spread each point's volume over the cells it covers; gives volume per cell size, shape ``[len(a) for a in axes]``.

    ``axes`` are the cell centres (mm, evenly spaced, rising or falling), ``points`` and ``radii`` (N, len(axes)).
    On two axes the result is a path length in mm, on three a filled fraction.
    """
    shape = np.array([len(a) for a in axes])
    start = np.array([a[0] for a in axes])
    step = np.array([a[1] - a[0] for a in axes])
    where = (points - start) / step
    size = np.maximum(radii / np.abs(step), 0.35)
    reach = np.ceil(size + 0.5).astype(np.int64)
    near = ((where > -reach) & (where < shape + reach - 1)).all(axis=1)
    # A rim wide enough for every footprint spares a test of each of its cells.
    rim = 2 * int(reach[near].max(initial=0)) + 1
    wide = shape + 2 * rim
    total = np.zeros(int(wide.prod()), np.float64)
    # Points of like size share one block of offsets, which keeps the work in a few large array operations.
    key = reach @ (64 ** np.arange(len(axes)))
    for value in np.unique(key[near]):
        chosen = np.flatnonzero(near & (key == value))
        cells, weights = _footprints(where[chosen] + rim, size[chosen], reach[chosen[0]], wide)
        weights *= (volume[chosen] / weights.sum(axis=1)).astype(np.float32)[:, None]
        total += np.bincount(cells.ravel(), weights.ravel(), total.size)
    inner = total.reshape(wide)[tuple(slice(rim, rim + n) for n in shape)]
    return (inner / np.abs(step).prod()).astype(np.float32)


def splat_film(points: Floats, radii: Floats, volume: Floats, axes: list[Floats]) -> Floats:
    """``splat`` on a square film, with what is broad drawn on a coarser grid and interpolated: several times faster."""
    broad = radii.max(axis=1) / abs(axes[0][1] - axes[0][0]) > _COARSE_CELLS
    if not broad.any() or any(len(a) % 2 for a in axes):
        return splat(points, radii, volume, axes)
    halved = [(a[::2] + a[1::2]) / 2 for a in axes]
    total = doubled(splat_film(points[broad], radii[broad], volume[broad], halved))
    if not broad.all():
        total += splat(points[~broad], radii[~broad], volume[~broad], axes)
    return total


_COARSE_CELLS = 6.0


def doubled(image: Floats) -> Floats:
    """Twice the rows and columns by linear interpolation between cell centres."""
    for axis in range(2):
        image = np.moveaxis(image, axis, 0)
        before, after = np.concatenate([image[:1], image[:-1]]), np.concatenate([image[1:], image[-1:]])
        fine = np.empty((2 * len(image), *image.shape[1:]), np.float32)
        fine[0::2], fine[1::2] = 0.75 * image + 0.25 * before, 0.75 * image + 0.25 * after
        image = np.moveaxis(fine, 0, axis)
    return image


def _footprints(where: Floats, size: Floats, reach: Floats, shape: Floats) -> tuple[Floats, Floats]:
    """Flat cell indices and unscaled weights of each point's block of cells; both (N, cells of the block)."""
    base = np.rint(where).astype(np.int64)
    square = np.zeros((len(where), 1), np.float32)
    cells = np.zeros((len(where), 1), np.int64)
    for k, r in enumerate(reach):
        cell = base[:, k, None] + np.arange(-r, r + 1)
        offset = ((cell - where[:, k, None]) / size[:, k, None]).astype(np.float32)
        square = (square[:, :, None] + (offset * offset)[:, None, :]).reshape(len(where), -1)
        cells = (cells[:, :, None] * shape[k] + cell[:, None, :]).reshape(len(where), -1)
    # (1 - d^2) / 2 is 1 - d to first order at the rim d = 1, where the weight falls from one to nothing.
    square *= (-0.5 * size.min(axis=1)).astype(np.float32)[:, None]
    square += (0.5 * size.min(axis=1) + 0.5).astype(np.float32)[:, None]
    return cells, np.clip(square, 0, 1, out=square)
