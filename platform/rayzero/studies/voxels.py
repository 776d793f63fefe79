"""Stored voxels into int16 Hounsfield units, and the limits that every reader of volumes shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayzero.studies.errors import StudyFileError
from rayzero.studies.orientation import Array, canonical
from rayzero.studies.study import Image

MAX_VOXELS = 1000 * 2**20
"""Largest volume that is decoded: 1000 slices of 1024 x 1024. Its 2.0 GB fit one cell of a Parquet file."""

_SLAB_VOXELS = 2**22
_SAMPLE = 64
"""Positions along each axis that the check of the units looks at."""
_LEAST_SHARE = 0.005


@dataclass(frozen=True, kw_only=True)
class VolumeHeader:
    """What a corpus's table says of a volume whose own header is absent or wrong.

    ``axes`` and ``spacing_mm`` describe the axes of the array slowest first: (k, j, i) of NIfTI, (0, 1, 2) of
    NumPy. Each of ``axes`` is a direction in LPS coordinates. HU = ``slope`` * stored value + ``intercept``.
    """

    axes: tuple[tuple[float, ...], ...]
    spacing_mm: tuple[float, float, float]
    slope: float = 1.0
    intercept: float = 0.0


def check_size(shape: Sequence[int]) -> None:
    """Refuse what is not three axes of two or more voxels each, ``MAX_VOXELS`` at most."""
    text = "x".join(map(str, shape))
    if len(shape) != 3 or min(shape) < 2:
        raise StudyFileError("header", f"an array of {text} is no volume; give three axes of 2 or more voxels each")
    voxels = 1
    for count in shape:
        voxels *= int(count)
    if voxels > MAX_VOXELS:
        raise StudyFileError("header", f"a volume of {text} is beyond {MAX_VOXELS:,} voxels")


def volume_image(image_id: str, stored: Array, header: VolumeHeader, *, units_stated: bool) -> Image:
    """``stored`` (three axes, any number type) as an image of the lake.

    Units that no header states are checked: a chest holds air and soft tissue. Fractions of an HU are rounded.
    Raises StudyFileError.
    """
    hu = to_hounsfield(stored, header.slope, header.intercept)
    turned, spacing = canonical(hu, np.asarray(header.axes, dtype=np.float64), header.spacing_mm)
    if not units_stated:
        _check_units(turned)
    return Image.from_array(image_id, turned, view="volume", bits=16, spacing_mm=spacing)


def to_hounsfield(stored: Array, slope: float, intercept: float) -> Array:
    """``slope`` * ``stored`` + ``intercept`` as int16, a slab at a time.

    Raises StudyFileError for values that are not finite or lie beyond int16, which no CT reaches.
    """
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise StudyFileError("header", f"the rescale slope {slope:g} and intercept {intercept:g} map to no HU")
    native = stored.dtype.newbyteorder("=")
    if (native, slope, intercept) == (np.dtype(np.int16), 1, 0):
        return stored.astype(native, copy=False)
    hu = np.empty(stored.shape, np.int16)
    step = max(1, _SLAB_VOXELS // max(1, stored[0].size))
    for start in range(0, len(stored), step):
        # Double precision: an int32 or a slope with decimals is exact, and the slab is small.
        values = stored[start : start + step].astype(np.float64)
        values *= slope
        values += intercept
        low, high = float(values.min()), float(values.max())
        if not (low >= -32768 and high <= 32767):
            raise StudyFileError("pixels", f"voxel values reach [{low:g}, {high:g}]; they are not Hounsfield units")
        hu[start : start + step] = np.rint(values)
    return hu


def _check_units(hu: Array) -> None:
    """Refuse values that cannot be HU, such as stored values never rescaled, or HU rescaled once more."""
    step = tuple(slice(None, None, max(1, n // _SAMPLE)) for n in hu.shape)
    sample = hu[step]
    air, tissue = float((sample < -300).mean()), float((np.abs(sample) <= 300).mean())
    if min(air, tissue) < _LEAST_SHARE:
        reason = f"{air:.1%} of the voxels are air (below -300) and {tissue:.1%} soft tissue (-300 to 300)"
        raise StudyFileError("pixels", f"{reason}; the values are not Hounsfield units of a chest")
