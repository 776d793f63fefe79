"""Thin curved structures (ribs, vessels, catheters) as points that carry volume.

A tube is a row of points, each with the volume of its piece of tube and the half extents of its section.
Spreading that volume over a flat disc on a film, or a ball in a volume, conserves it exactly, so a film and a
CT agree whatever the direction of the tube and however thin it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .solids import Bools, Floats

Indices = NDArray[np.int64]


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


def round_tube(path: Floats, radius: ArrayLike, hu: float, *, owner: int = -1, step: float = 1.0) -> Tube:
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


def straight_rods(starts: Floats, ends: Floats, radius: float, hu: float, *, count: int = 8, owner: int = -1) -> Tube:
    """Many straight rods of ``radius`` mm from ``starts`` to ``ends`` (N, 3), as one tube of ``count`` points a rod."""
    at = ((np.arange(count) + 0.5) / count)[None, :, None]
    points = (starts[:, None] * (1 - at) + ends[:, None] * at).reshape(-1, 3)
    length = np.repeat(np.linalg.norm(ends - starts, axis=1), count)
    return Tube(points, np.full((len(points), 3), radius), np.pi * radius**2 * length / count, hu, owner)


def flat_tube(path: Floats, height: float, width: float, hu: float, *, owner: int = -1) -> Tube:
    """A strap along ``path`` (N, 3): half ``height`` mm along z and half ``width`` mm across its horizontal course."""
    step = np.gradient(path, axis=0)
    length = np.linalg.norm(step, axis=1)
    course = np.abs(step[:, :2]) / np.maximum(np.linalg.norm(step[:, :2], axis=1, keepdims=True), 1e-6)
    radii = np.column_stack([course[:, 1] * width + 1.9, course[:, 0] * width + 1.9, np.full(len(path), height)])
    return Tube(path, radii, np.pi * height * width * length, hu, owner)


def splat(points: Floats, radii: Floats, volume: Floats, axes: Sequence[Floats]) -> Floats:
    """Spread each point's volume over the cells it covers; gives volume per cell size, shape (len(axis), ...).

    ``axes`` are the cell centres (mm, evenly spaced, rising or falling), ``points`` and ``radii`` (N, len(axes)).
    On two axes the result is a path length in mm, on three a filled fraction.
    """
    shape = np.array([len(a) for a in axes])
    start = np.array([a[0] for a in axes])
    step = np.array([a[1] - a[0] for a in axes])
    where = (points - start) / step
    size = np.maximum(radii / np.abs(step), _LEAST_CELLS)
    # The weight below is zero from size * sqrt(1 + 1/size) on, and a point lies within half a cell of its base.
    reach = np.floor(np.sqrt(size * (size + size / size.min(axis=1, keepdims=True))) + 0.5).astype(np.int64)
    near = ((where > -reach) & (where < shape + reach - 1)).all(axis=1)
    # A rim wide enough for every footprint spares a test of each of its cells.
    rim = 2 * int(reach[near].max(initial=0)) + 1
    wide = shape + 2 * rim
    # Points of like reach share one block of offsets, which keeps the work in a few large array operations.
    batches = list(_batches(reach, near))
    filled = sum(len(chosen) * int((2 * reach[chosen[0]] + 1).prod()) for chosen in batches)
    cells, weights = np.empty(filled, np.int64), np.empty(filled)
    done = 0
    for chosen in batches:
        weight = _footprints(where[chosen], size[chosen], reach[chosen[0]])
        weight *= (volume[chosen] / weight.sum(axis=0)).astype(np.float32)
        part = slice(done, done + weight.size)
        weights[part].reshape(weight.shape)[...] = weight
        _cells(where[chosen] + rim, reach[chosen[0]], wide, cells[part].reshape(weight.shape))
        done += weight.size
    total = np.bincount(cells, weights, int(wide.prod()))
    inner = total.reshape(wide)[tuple(slice(rim, rim + n) for n in shape)]
    return np.asarray(inner / np.abs(step).prod(), np.float32)


def _batches(reach: Indices, near: Bools) -> Iterator[Indices]:
    """The near points, as groups of equal reach whose footprints fit the processor's cache together."""
    key = reach @ (64 ** np.arange(reach.shape[1]))
    order = np.flatnonzero(near)
    order = order[np.argsort(key[order], kind="stable")]
    for group in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
        if len(group):
            most = max(_BATCH_CELLS // int((2 * reach[group[0]] + 1).prod()), 1)
            yield from (group[k : k + most] for k in range(0, len(group), most))


_BATCH_CELLS = 1 << 16


def splat_film(points: Floats, radii: Floats, volume: Floats, axes: Sequence[Floats]) -> Floats:
    """``splat`` on a square film, with what is broad drawn on a coarser grid and interpolated: several times faster."""
    broad = radii.max(axis=1) / abs(axes[0][1] - axes[0][0]) > _COARSE_CELLS
    if not broad.any() or any(len(a) % 2 for a in axes):
        return splat(points, radii, volume, axes)
    halved = [(a[::2] + a[1::2]) / 2 for a in axes]
    total = doubled(splat_film(points[broad], radii[broad], volume[broad], halved))
    if not broad.all():
        total += splat(points[~broad], radii[~broad], volume[~broad], axes)
    return total


_COARSE_CELLS = 4.0
_LEAST_CELLS = 0.6
"""Half extent in cells below which a point could fall between cell centres and be lost."""


def doubled(image: Floats) -> Floats:
    """Twice the rows and columns by linear interpolation between cell centres."""
    rows, cols = image.shape
    tall = np.empty((2 * rows, cols), np.float32)
    _interleave(image, tall[0::2], tall[1::2])
    fine = np.empty((2 * rows, 2 * cols), np.float32)
    _interleave(tall.T, fine.T[0::2], fine.T[1::2])
    return fine


def _interleave(image: Floats, even: Floats, odd: Floats) -> None:
    """Values a quarter of a cell before and after each row's centre."""
    most = image * np.float32(0.75)
    least = image * np.float32(0.25)
    np.add(most[1:], least[:-1], out=even[1:])
    np.add(most[:-1], least[1:], out=odd[:-1])
    even[0], odd[-1] = image[0], image[-1]


def _footprints(where: Floats, size: Floats, reach: Indices) -> Floats:
    """Unscaled weights of each point's block of cells, float32 (cells of the block, N): long rows are fast rows."""
    thin = size.min(axis=1)
    # (1 - d^2) / 2 is 1 - d to first order at the rim d = 1, where the weight falls from one to nothing.
    weight = (0.5 * thin + 0.5).astype(np.float32)[None]
    for k, r in enumerate(reach):
        offset = (np.rint(where[:, k]) - where[:, k] + np.arange(-r, r + 1)[:, None]) / size[:, k]
        square = (0.5 * thin * offset * offset).astype(np.float32)
        weight = (weight[:, None] - square).reshape(-1, len(where))
    np.maximum(weight, 0, out=weight)
    return np.asarray(np.minimum(weight, 1, out=weight))


def _cells(where: Floats, reach: Indices, shape: Indices, out: Indices) -> None:
    """Flat indices of the cells of each point's block into ``out`` (cells of the block, N)."""
    base, block = np.zeros(len(where), np.int64), np.zeros(1, np.int64)
    for k, r in enumerate(reach):
        base = base * shape[k] + np.rint(where[:, k]).astype(np.int64)
        block = (block[:, None] * shape[k] + np.arange(-r, r + 1)).ravel()
    np.add(block[:, None], base, out=out)
