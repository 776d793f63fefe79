"""From a stored CT volume to a network's input, and from a map on that input back to the volume.

Resampling is separable, so each axis is one sparse matrix (scipy.sparse): linear interpolation, with the triangle
widened to the coarser grid's spacing when it shrinks, which is the low-pass filter that the published pipelines
lack. A resampler of whole images (SimpleITK, MONAI) would bring a large wheel or torch into every ingest task and
still leave that filter to a pass of its own. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from rayzero.config import DataConfig
from rayzero.studies.study import Image

Float = np.ndarray[Any, np.dtype[np.float32]]
Triple = tuple[float, float, float]

PRESETS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "brgsa": {"volume_spacing_mm": (3.0, 1.5, 1.5), "volume_shape": (128, 256, 256), "hu_range": (-1000.0, 1000.0)},
    "ct-clip": {"volume_spacing_mm": (1.5, 0.75, 0.75), "volume_shape": (240, 480, 480), "hu_range": (-1000.0, 1000.0)},
}
"""Settings of ``DataConfig`` as published: BrgSA spec, section 1, and datasets spec, section 0.4."""

_STRIP = 16


@dataclass(frozen=True)
class _Axis:
    """One axis of a volume of ``count`` voxels laid on ``size`` samples; spacings in mm."""

    count: int
    spacing: float
    size: int
    step: float

    @property
    def resampled(self) -> int:
        """Samples that span the volume: its extent over the step, rounded, at least one."""
        return max(1, round(self.count * self.spacing / self.step))

    @property
    def first(self) -> int:
        """Index of sample 0 of the input among the resampled; negative where padding precedes the volume.

        A crop takes the larger half from the low side, padding puts the smaller half there (BrgSA spec, section 1).
        """
        missing = self.size - self.resampled
        return -(missing // 2) if missing >= 0 else math.ceil(-missing / 2)

    def positions(self, samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Where input samples lie, in voxel indices. Both grids are centred on the centre of the volume."""
        return (samples + self.first + 0.5 - self.resampled / 2) * (self.step / self.spacing) + (self.count - 1) / 2

    def weights(self) -> sparse.csr_array:
        """(size, count): each sample from the voxels; rows of padding are empty."""
        samples = np.arange(self.size)
        inside = (samples + self.first >= 0) & (samples + self.first < self.resampled)
        return _triangles(self.positions(samples), self.count, max(1.0, self.step / self.spacing), inside)

    def back(self, cells: int) -> tuple[sparse.csr_array, np.ndarray[Any, np.dtype[np.bool_]]]:
        """(count, cells): each voxel from a map of ``cells`` over the input, and which voxels the input covers."""
        voxels = np.arange(self.count)
        # In samples: the inverse of ``positions``.
        samples = (voxels - (self.count - 1) / 2) * (self.spacing / self.step) + self.resampled / 2 - 0.5 - self.first
        inside = (samples > -0.5) & (samples < self.size - 0.5)
        where = (samples + 0.5) * (cells / self.size) - 0.5
        width = max(1.0, cells / self.size * self.spacing / self.step)
        return _triangles(where, cells, width, inside), inside


@dataclass(frozen=True)
class VolumeGeometry:
    """How a volume of ``shape`` voxels of ``spacing_mm`` was laid on an input of ``size`` samples ``step_mm`` apart.

    All four run Z, Y, X.
    """

    shape: tuple[int, int, int]
    spacing_mm: Triple
    size: tuple[int, int, int]
    step_mm: Triple

    def restore(self, grid: Float, slices: slice = slice(None)) -> Float:
        """A map (d, h, w) over the whole input as (Z, Y, X) on the volume's own voxels, trilinear.

        ``slices`` selects axial slices; the others are not computed. Voxels that the input's centre crop left out
        take the least value of the map: nothing was found there.
        """
        pairs = [axis.back(cells) for axis, cells in zip(self.axes, grid.shape, strict=True)]
        along_z, along_y, along_x = (weights for weights, _ in pairs)
        restored = _apply(np.ascontiguousarray(grid, dtype=np.float32), [along_z[slices], along_y, along_x])
        z, y, x = (covered for _, covered in pairs)
        z = z[slices]
        if not (z.all() and y.all() and x.all()):
            restored[~(z[:, None, None] & y[:, None] & x)] = grid.min()
        return restored

    @property
    def axes(self) -> tuple[_Axis, ...]:
        """One ``_Axis`` for each of Z, Y, X."""
        return tuple(_Axis(*each) for each in zip(self.shape, self.spacing_mm, self.size, self.step_mm, strict=True))


def prepare_volume(image: Image, data: DataConfig) -> tuple[Float, VolumeGeometry]:
    """``image`` as float32 (1, Z, Y, X) of ``data.volume_shape`` in [-1, 1] with its geometry.

    Resampled to ``data.volume_spacing_mm``, cropped or padded about its centre, clamped to ``data.hu_range`` and
    scaled linearly, in this order; padding is the low end of the range. Raises ValueError for a radiograph.
    """
    if len(image.shape) != 3 or len(image.spacing_mm) != 3:
        raise ValueError(f"image {image.image_id} has shape {image.shape}; this model reads volumes (Z, Y, X)")
    shape, spacing = (image.shape[0], image.shape[1], image.shape[2]), image.spacing_mm
    geometry = VolumeGeometry(shape, (spacing[0], spacing[1], spacing[2]), data.volume_shape, data.volume_spacing_mm)
    weights = [axis.weights() for axis in geometry.axes]
    low, high = data.hu_range
    # Weights sum to one inside the volume and to zero in the padding: relative to ``low``, padding is zero.
    hu = _apply(image.array(), weights, offset=-low)
    hu *= 2.0 / (high - low)
    hu -= 1.0
    return np.clip(hu, -1.0, 1.0, out=hu)[None], geometry


def _triangles(
    where: np.ndarray[Any, Any], count: int, width: float, inside: np.ndarray[Any, np.dtype[np.bool_]]
) -> sparse.csr_array:
    """(len(where), count): triangles of half ``width`` about ``where`` over the indices 0 to ``count`` - 1.

    Each row sums to one, so beyond the outermost indices it repeats them; rows not ``inside`` are empty.
    """
    taps = np.arange(math.ceil(2 * width) + 1)
    centre = np.clip(where, 0, count - 1)
    index = np.floor(centre - width).astype(np.int64)[:, None] + taps
    weight = np.maximum(1 - np.abs(index - centre[:, None]) / width, 0)
    weight[(index < 0) | (index >= count) | ~inside[:, None]] = 0
    total = weight.sum(axis=1, keepdims=True)
    weight /= np.where(total > 0, total, 1)
    rows, columns = np.nonzero(weight)
    matrix = sparse.csr_array((weight[rows, columns].astype(np.float32), (rows, index[rows, columns])),
                              shape=(len(where), count))  # fmt: skip
    return matrix


def _apply(array: np.ndarray[Any, Any], weights: list[sparse.csr_array], offset: float = 0.0) -> Float:
    """``array`` + ``offset`` with one matrix applied along each axis."""
    along_z, along_y, along_x = weights
    depth, height, width = (matrix.shape[0] for matrix in weights)
    # Along Z first, which shrinks most, in strips: the volume is never held whole in floating point.
    thin = np.empty((depth, *array.shape[1:]), np.float32)
    for start in range(0, array.shape[1], _STRIP):
        strip = array[:, start : start + _STRIP].astype(np.float32)
        strip += np.float32(offset)
        thin[:, start : start + _STRIP] = (along_z @ strip.reshape(len(strip), -1)).reshape(depth, *strip.shape[1:])
    out = np.empty((depth, height, width), np.float32)
    for plane, filled in zip(thin, out, strict=True):
        filled[...] = (along_x @ np.ascontiguousarray((along_y @ plane).T)).T
    return out
