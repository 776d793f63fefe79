"""CT of an anatomy: the same shapes evaluated at voxel centres, in Hounsfield units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .anatomy import HU, SIDES, Anatomy
from .films import CENTRE_Z, FIELD_MM, SPINE_HU
from .pathology import build_anatomy
from .patient import Study
from .solids import Bools, Floats
from .tubes import splat

DEPTH_MM = 300.0
"""Extent of the volume from front to back; its other extents are those of the film."""


@dataclass(frozen=True)
class CtVolume:
    """``hu`` int16 (slices, rows, columns): slices rise to the head, rows to the back, columns to the patient's left.

    ``spacing`` (slice, row, column) and ``origin`` (x, y, z of the first voxel) in mm, DICOM patient coordinates.
    ``masks`` maps an index into ``study.findings`` to booleans of the same shape.
    """

    hu: np.ndarray
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    masks: dict[int, Bools]

    @property
    def affine(self) -> Floats:
        """The (4, 4) map from (column, row, slice) indices to RAS mm, the convention of NIfTI."""
        dz, dy, dx = self.spacing
        x, y, z = self.origin
        return np.array([[-dx, 0, 0, -x], [0, -dy, 0, -y], [0, 0, dz, z], [0, 0, 0, 1.0]])


def ct_axes(spacing: float) -> tuple[Floats, Floats, Floats]:
    """Voxel centres (mm) along z, y and x for isotropic voxels of ``spacing`` mm, each rising."""
    counts = [int(extent / spacing) for extent in (FIELD_MM, DEPTH_MM, FIELD_MM)]
    z, y, x = ((np.arange(n) - (n - 1) / 2) * spacing for n in counts)
    return z + CENTRE_Z, y, x


def render_ct(study: Study, spacing: float = 3.0) -> CtVolume:
    """The CT of a study with isotropic voxels of ``spacing`` mm and a mask for each finding."""
    anatomy = build_anatomy(study)
    z, y, x = ct_axes(spacing)
    hu, traces = _voxels(anatomy, z, y, x)
    masks = {}
    for owner, trace in traces.items():
        mask = trace > max(0.28 * float(trace.max()), 1e-3)
        if mask.any():
            masks[owner] = mask
    rounded = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return CtVolume(rounded, (spacing,) * 3, (float(x[0]), float(y[0]), float(z[0])), masks)


def _voxels(anatomy: Anatomy, z: Floats, y: Floats, x: Floats) -> tuple[Floats, dict[int, Floats]]:
    """HU before rounding, float32 (slices, rows, columns), and what each finding fills of each voxel."""
    hu = np.full((len(z), len(y), len(x)), HU["air"], np.float32)
    traces: dict[int, Floats] = {}
    for breast in anatomy.breasts:
        hu[breast.voxels(x, y, z)] = HU["breast"]
    hu[anatomy.body.voxels(x, y, z)] = HU["fat"]
    hu[anatomy.muscle.voxels(x, y, z)] = HU["soft"]
    organ = np.zeros(hu.shape, bool)
    for solid in anatomy.organs.values():
        organ |= solid.voxels(x, y, z)
    for side in SIDES:
        cavity = anatomy.cavities[side].voxels(x, y, z) & ~organ
        lung = anatomy.lungs[side].voxels(x, y, z) & ~organ
        hu[cavity], hu[lung] = anatomy.space_hu[side], anatomy.lung_hu[side]
        for owner in (owner for where, owner in anatomy.emptied if where == side):
            _mark(traces, owner, cavity & ~lung)
        for owner in anatomy.lucent:
            _mark(traces, owner, lung)
        _add_lesions(anatomy, lung, (-1.0 if side == "right" else 1.0), (z, y, x), hu, traces)
    hu += SPINE_HU * anatomy.spine.voxels(x, y, z)
    for solid, _ in anatomy.gas:
        hu[solid.voxels(x, y, z)] = HU["air"]
    for name, owner in anatomy.silhouettes:
        _mark(traces, owner, anatomy.organs[name].voxels(x, y, z))
    _add_tubes(anatomy, (z, y, x), hu, traces)
    return hu, traces


def _mark(traces: dict[int, Floats], owner: int, filled: Floats | Bools) -> None:
    traces[owner] = np.maximum(traces.get(owner, np.float32(0)), filled.astype(np.float32))


def _add_lesions(
    anatomy: Anatomy,
    lung: Bools,
    sign: float,
    axes: tuple[Floats, Floats, Floats],
    hu: Floats,
    traces: dict[int, Floats],
) -> None:
    for lesion in anatomy.lesions:
        if sign * lesion.centre[0] <= 0:
            continue
        reach = lesion.reach
        block = tuple(
            slice(*np.searchsorted(axis, [c - r, c + r]))
            for axis, c, r in zip(axes, lesion.centre[::-1], reach[::-1], strict=True)
        )
        z, y, x = (axis[part] for axis, part in zip(axes, block, strict=True))
        added = lesion.density(x, y, z) * lung[block]
        hu[block] += lesion.hu * added
        if lesion.soft:
            # Overlapping soft parts fill the air there is and no more.
            np.minimum(hu[block], 60.0, out=hu[block], where=added > 0)
        if lesion.owner >= 0:
            traces.setdefault(lesion.owner, np.zeros(hu.shape, np.float32))[block] += added * (lesion.hu / 1000)


def _add_tubes(anatomy: Anatomy, axes: tuple[Floats, Floats, Floats], hu: Floats, traces: dict[int, Floats]) -> None:
    for owner in sorted({tube.owner for tube in anatomy.tubes}):
        tubes = [tube for tube in anatomy.tubes if tube.owner == owner]
        points, radii = (np.concatenate([getattr(t, name)[:, ::-1] for t in tubes]) for name in ("points", "radii"))
        filled = splat(points, radii, np.concatenate([t.volume * (t.hu / 1000) for t in tubes]), list(axes))
        hu += 1000 * filled
        if owner >= 0:
            traces.setdefault(owner, np.zeros(hu.shape, np.float32))[...] += filled
