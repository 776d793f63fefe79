"""Puts a volume's array on the axes of the lake: Z to the head, Y to the back, X to the patient's left.

Axes are permuted and reversed, never resampled, so every voxel keeps its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayzero.studies.errors import StudyFileError

Array = np.ndarray[Any, Any]

MAX_TILT_DEGREES = 25.0
"""How far an array axis may lean from the body axis that it is taken for."""

MAX_SHEAR = 0.05
"""Cosine between two array axes above which the grid is sheared, as under a tilted gantry (about 3 degrees)."""

# Body axes of Z, Y, X as indices into (left, posterior, superior).
_TARGET = (2, 1, 0)


def canonical(array: Array, axes: Array, spacing_mm: Sequence[float]) -> tuple[Array, tuple[float, float, float]]:
    """``array`` (three axes of any orientation) as a view (Z, Y, X) with its spacing in that order.

    ``axes`` (3, 3) holds, row by row, the direction of each array axis in LPS patient coordinates: towards the
    left, the back and the head. Raises StudyFileError for a grid that is degenerate, sheared, or oblique by more
    than ``MAX_TILT_DEGREES``, and for a spacing that is not positive.
    """
    if not all(0 < step < np.inf for step in spacing_mm):
        raise StudyFileError("header", f"the voxel spacing {_listed(spacing_mm)} mm is not positive")
    lengths = np.linalg.norm(axes, axis=1)
    if not np.isfinite(axes).all() or not (lengths > 1e-6).all():
        raise StudyFileError("header", "the orientation of the volume is degenerate")
    unit = axes / lengths[:, None]
    shear = np.abs(unit @ unit.T - np.eye(3)).max()
    if shear > MAX_SHEAR:
        raise StudyFileError("header", f"the slices are sheared (axes meet at cosine {shear:.2f}); resample them first")
    body = np.abs(unit).argmax(axis=1)
    tilt = np.degrees(np.arccos(np.clip(np.abs(unit).max(axis=1), 0, 1))).max()
    if tilt > MAX_TILT_DEGREES or len(set(body)) != 3:
        raise StudyFileError("header", f"the volume is oblique by {tilt:.0f} degrees; resample it to the body axes")
    order = [int(np.flatnonzero(body == axis)[0]) for axis in _TARGET]
    turned = array.transpose(order)
    flips = tuple(slice(None, None, -1 if unit[k, body[k]] < 0 else 1) for k in order)
    z, y, x = (float(spacing_mm[k]) for k in order)
    return turned[flips], (z, y, x)


def _listed(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
