"""Shapes with closed-form chords: the same inequalities give a film's path lengths and a CT's voxels.

Coordinates are DICOM patient coordinates in mm: x to the patient's left, y to the back, z to the head.
A frontal ray runs along y and meets the film at (x, z); a lateral ray runs along x and meets it at (y, z).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

View = Literal["frontal", "lateral"]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

LEVELS: Floats = np.linspace(-210.0, 210.0, 841)
"""Axial levels (mm) at which a solid's outline is tabulated."""

_STEP = float(LEVELS[1] - LEVELS[0])

NOWHERE = 1.0e6
"""Both ends of the interval of a ray that misses: a length of zero, sorted behind every real one."""


@dataclass(frozen=True)
class Solid:
    """A stack of axial superellipses whose outline varies smoothly with the level.

    ``x0``..``x1`` and ``y0``..``y1`` (mm, each of shape ``LEVELS.shape``) bound the section of each level;
    a level with ``x1 <= x0`` has none. ``power`` is 2 for an ellipse, more for a squarer section.
    """

    x0: Floats
    x1: Floats
    y0: Floats
    y1: Floats
    power: float = 2.0

    def outline(self, z: Floats) -> tuple[Floats, ...]:
        """``x0``, ``x1``, ``y0``, ``y1`` at the levels ``z``, interpolated, each of ``z.shape``."""
        place = np.clip((z - LEVELS[0]) / _STEP, 0, len(LEVELS) - 1.001)
        low = place.astype(np.intp)
        share = place - low
        below, above = self._table[:, low], self._table[:, low + 1]
        return tuple(below + (above - below) * share)

    @cached_property
    def _table(self) -> Floats:
        return np.stack([self.x0, self.x1, self.y0, self.y1])

    @cached_property
    def bounds(self) -> tuple[Floats, Floats]:
        """Least and greatest corner (x, y, z) in mm of the box that holds the solid; out of order if it is empty."""
        there = np.flatnonzero((self.x1 > self.x0) & (self.y1 > self.y0))
        if not len(there):
            return np.full(3, NOWHERE), np.full(3, -NOWHERE)
        low = [self.x0[there].min(), self.y0[there].min(), LEVELS[there[0]] - _STEP]
        high = [self.x1[there].max(), self.y1[there].max(), LEVELS[there[-1]] + _STEP]
        # An outline interpolated towards an empty level may reach a little further.
        return np.array(low) - 1.0, np.array(high) + 1.0

    def extent(self, z: Floats, view: View) -> tuple[Floats, Floats, Floats, Floats]:
        """Centre and half width across the film, centre and half depth along the ray (mm), each of ``z.shape``."""
        x0, x1, y0, y1 = self.outline(z)
        sides = ((x0 + x1) / 2, (x1 - x0) / 2), ((y0 + y1) / 2, (y1 - y0) / 2)
        (centre, half), (middle, depth) = sides if view == "frontal" else sides[::-1]
        return centre, np.where((x1 > x0) & (y1 > y0), half, 0.0), middle, depth

    def window(self, view: View, across: Floats, z: Floats) -> tuple[slice, slice]:
        """The block of film rows and columns that the solid's shadow falls in."""
        return block_of(self.extent(z, view), across)

    def contains(self, points: Floats) -> Bools:
        """Whether each point (N, 3) in mm lies inside, as (N,) booleans."""
        (left, _, foot), (right, _, top) = self.bounds
        x, z = points[:, 0], points[:, 2]
        inside: Bools = (z > foot) & (z < top) & (x > left) & (x < right)
        near = points[inside]
        centre, half, middle, depth = self.extent(near[:, 2], "frontal")
        radius = np.minimum(np.abs(near[:, 0] - centre) / np.maximum(half, 1e-3), 1)
        inside[inside] = np.abs(near[:, 1] - middle) < depth * arc(radius, self.power) * (half > 0)
        return inside

    def voxels(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Whether each voxel centre lies inside, as booleans of shape (len(z), len(y), len(x))."""
        inside = np.zeros((len(z), len(y), len(x)), bool)
        rows, cols = self.window("frontal", x, z)
        _, lines = self.window("lateral", y, z)
        if rows.stop > rows.start and cols.stop > cols.start and lines.stop > lines.start:
            extent = (e.astype(np.float32)[:, None, None] for e in self.extent(z[rows], "frontal"))
            centre, half, middle, depth = extent
            inside[rows, lines, cols] = _inside(
                x[cols].astype(np.float32) - centre, half, y[lines, None].astype(np.float32) - middle, depth, self.power
            )
        return inside

    def grown(self, margin: float) -> Solid:
        """The solid with every section wider by ``margin`` mm on each side (empty levels stay empty)."""
        there = np.where((self.x1 > self.x0) & (self.y1 > self.y0), margin, 0.0)
        return Solid(self.x0 - there, self.x1 + there, self.y0 - there, self.y1 + there, self.power)

    def sheared(self, turn: float, pivot: float) -> Solid:
        """The solid after its sections' centres turned by ``turn`` radians about the axis x=0, y=``pivot`` mm."""
        x, y = (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2 - pivot
        dx, dy = turn * y, -turn * x
        return Solid(self.x0 + dx, self.x1 + dx, self.y0 + dy, self.y1 + dy, self.power)


def ellipsoid_solid(centre: ArrayLike, radii: ArrayLike, floor: float = -NOWHERE, top: float = NOWHERE) -> Solid:
    """An upright ellipsoid cut flat at ``floor`` and ``top`` (mm); ``centre`` and ``radii`` are (x, y, z) in mm."""
    (cx, cy, cz), (rx, ry, rz) = np.asarray(centre, float), np.asarray(radii, float)
    arc = np.sqrt(np.clip(1 - ((LEVELS - cz) / rz) ** 2, 0, 1))
    arc = np.where((floor <= LEVELS) & (top >= LEVELS), arc, 0.0)
    return Solid(cx - rx * arc, cx + rx * arc, cy - ry * arc, cy + ry * arc)


@dataclass(frozen=True)
class Ellipsoid:
    """A tilted ellipsoid that adds ``hu`` to the air it lies in.

    ``form`` is the (3, 3) quadratic form whose level 1 is the surface, so that q = d' form d. A soft ellipsoid
    adds ``hu * (1 - q)``, which fades to nothing at the surface; a hard one adds ``hu`` throughout.
    ``owner`` is the index of the finding it belongs to, -1 for normal anatomy.
    """

    centre: Floats
    form: Floats
    hu: float
    soft: bool
    owner: int = -1

    @staticmethod
    def of(
        centre: ArrayLike, radii: ArrayLike, hu: float, *, soft: bool, owner: int = -1, axes: Floats | None = None
    ) -> Ellipsoid:
        """Build from radii in mm along the columns of ``axes`` (3, 3; the coordinate axes by default)."""
        basis = np.eye(3) if axes is None else axes
        form = basis @ np.diag(1.0 / np.asarray(radii, float) ** 2) @ basis.T
        return Ellipsoid(np.asarray(centre, float), form, hu, soft, owner)

    @cached_property
    def reach(self) -> Floats:
        """Half of the bounding box, (3,) in mm."""
        return np.sqrt(np.diag(np.linalg.inv(self.form)))

    def window(self, view: View, across: Floats, z: Floats) -> tuple[slice, slice]:
        """The block of film rows and columns that the shadow falls in (``z`` falls from row to row)."""
        axis, reach = (0 if view == "frontal" else 1), self.reach
        centre = self.centre
        rows = _span(-z, -centre[2] - reach[2], -centre[2] + reach[2])
        return rows, _span(across, centre[axis] - reach[axis], centre[axis] + reach[axis])

    def path(self, view: View, across: Floats, z: Floats, gaps: list[tuple[Floats, Floats]]) -> Floats:
        """Line integral of the added density within ``gaps``, in mm, shape (len(z), len(across)).

        ``gaps`` are the disjoint stretches (start, end) of each ray that run through air.
        """
        u, t = (0, 1) if view == "frontal" else (1, 0)
        # Plain numbers, so that the arrays stay in single precision.
        m, centre = self.form.tolist(), self.centre.tolist()
        muu, muz, mzz, mtu, mtz, mtt = m[u][u], m[u][2], m[2][2], m[t][u], m[t][2], m[t][t]
        du = (across - self.centre[u]).astype(np.float32)[None, :]
        dz = (z - self.centre[2]).astype(np.float32)[:, None]
        shift = (mtu / mtt) * du + (mtz / mtt) * dz
        room = 1 - muu * du * du - 2 * muz * du * dz - mzz * dz * dz + mtt * shift * shift
        room = np.maximum(room, 0, out=room)
        half = np.sqrt(room * (1 / mtt))
        middle = centre[t] - shift
        total = np.zeros(half.shape, np.float32)
        for start, end in gaps:
            near = np.clip(start - middle, -half, half)
            far = np.clip(end - middle, near, half)
            if self.soft:
                total += room * (far - near) - (mtt / 3) * (far * far * far - near * near * near)
            else:
                total += far - near
        return total

    def density(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Added fraction of ``hu`` at voxel centres, float32 of shape (len(z), len(y), len(x))."""
        m = self.form.astype(np.float32)
        dx = (x - self.centre[0]).astype(np.float32)[None, None, :]
        dy = (y - self.centre[1]).astype(np.float32)[None, :, None]
        dz = (z - self.centre[2]).astype(np.float32)[:, None, None]
        q = m[0, 0] * dx**2 + m[1, 1] * dy**2 + m[2, 2] * dz**2
        q = q + 2 * (m[0, 1] * dx * dy + m[0, 2] * dx * dz + m[1, 2] * dy * dz)
        return np.asarray(np.maximum(1 - q, 0) if self.soft else q < 1, np.float32)


def arc(radius: Floats, power: float) -> Floats:
    """Height of a superellipse at ``radius`` (0 to 1) from its centre; looked up unless it is an ellipse."""
    if power == 2.0:
        return np.sqrt(1 - radius * radius)
    return _arcs(power)[(radius * _TABLE).astype(np.intp)]


_TABLE = 8192
"""Steps of a table of arcs: the rim of a chest-wide solid is then off by a hundredth of a millimetre."""


@cache
def _arcs(power: float) -> Floats:
    """Heights at the middles of ``_TABLE`` steps from the centre to the rim, and at the rim."""
    radius = (np.arange(_TABLE) + 0.5) / _TABLE
    return np.append((1 - radius**power) ** (1 / power), 0).astype(np.float32)


def _inside(dx: Floats, half: Floats, dy: Floats, depth: Floats, power: float) -> Bools:
    a, b = np.abs(dx) / np.maximum(half, 1e-3), np.abs(dy) / np.maximum(depth, 1e-3)
    total = a * a + b * b if power == 2.0 else a**power + b**power
    return (total <= 1.0) & (half > 0) & (depth > 0)


def block_of(extent: tuple[Floats, Floats, Floats, Floats], across: Floats) -> tuple[slice, slice]:
    """The block of film rows and columns that holds every ray that meets a solid of this ``Solid.extent``."""
    centre, half, _, _ = extent
    rows = np.flatnonzero(half > 0)
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    left, right = (centre - half)[rows].min(), (centre + half)[rows].max()
    return slice(int(rows[0]), int(rows[-1]) + 1), _span(across, left, right)


def _span(ascending: Floats, low: float, high: float) -> slice:
    start, stop = np.searchsorted(ascending, [low, high])
    return slice(max(int(start) - 1, 0), min(int(stop) + 1, len(ascending)))
