"""From a map on the patch grid to what a reader asks: where the peak is, which area holds it, and a picture.

A map on a radiograph is (h, w), on a volume (d, h, w). Coordinates are pixels and slices of the image itself.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, replace
from typing import Any

import contourpy
import numpy as np
from PIL import Image as PillowImage
from scipy import ndimage
from scipy.special import expit

from rayzero.bundle import AnyGeometry
from rayzero.studies.preprocess import Geometry
from rayzero.studies.study import Mask
from rayzero.studies.volume_preprocess import VolumeGeometry

Float = np.ndarray[Any, np.dtype[np.float32]]
Bool = np.ndarray[Any, np.dtype[np.bool_]]
UInt16 = np.ndarray[Any, np.dtype[np.uint16]]
Extent = tuple[float, float, float, float]

# Boxes and areas are measured on the map resized to this longest side: a patch grid of at most 64 cells a side
# carries no finer detail, and a film of nine megapixels times fourteen findings would take seconds.
_CANVAS_SIDE = 256
# Of a volume each slice has this longest side; its slices are kept, up to so many.
_SECTION_SIDE = 96
_CANVAS_SLICES = 512
_SLAB = 16


LEVELS = 65535
"""The level of ``levels`` that stands for 1."""


@dataclass(frozen=True)
class Located:
    """Where a finding is: ``peak`` (x, y, z), half-open ``box`` (x0, y0, x1, y1) and ``slices`` (z0, z1), or None.

    Box and slices bound the connected area above the threshold that holds the peak; ``area_fraction`` is the share of
    the image above the threshold; ``slice_peaks`` (Z,) is the highest map logit of every slice. On a radiograph z,
    ``slices`` and ``slice_peaks`` are None.
    """

    peak: tuple[int, int, int | None]
    box: tuple[int, int, int, int] | None
    slices: tuple[int, int] | None
    area_fraction: float
    slice_peaks: Float | None


def locate(grid: Float, geometry: AnyGeometry, threshold: float) -> Located:
    """Peak, box and area of a map of logits at ``threshold`` (a logit)."""
    canvas = _canvas(grid, geometry)
    shape = _shape(geometry)
    steps = [full / small for full, small in zip(shape, canvas.shape, strict=True)]
    highest = np.unravel_index(int(canvas.argmax()), canvas.shape)
    above = canvas >= threshold
    bounds = None
    if above[highest]:
        labels, _ = ndimage.label(above)
        found = ndimage.find_objects(labels)[labels[highest] - 1]
        bounds = [
            (math.floor(part.start * step), min(math.ceil(part.stop * step), full))
            for part, step, full in zip(found, steps, shape, strict=True)
        ]
    peak = [int((index + 0.5) * step) for index, step in zip(highest, steps, strict=True)]
    box = None if bounds is None else (bounds[-1][0], bounds[-2][0], bounds[-1][1], bounds[-2][1])
    area = float(above.mean())
    if canvas.ndim == 2:
        return Located((peak[1], peak[0], None), box, None, area, None)
    highs = canvas.max(axis=(1, 2))
    every = (np.arange(shape[0]) + 0.5) / steps[0] - 0.5
    slice_peaks = np.interp(every, np.arange(len(highs)), highs).astype(np.float32)
    return Located((peak[2], peak[1], peak[0]), box, None if bounds is None else bounds[0], area, slice_peaks)


def extent(geometry: AnyGeometry) -> Extent:
    """The box of the image (x0, y0, x1, y1) that the patch grid covers; it overhangs an image that was padded."""
    if isinstance(geometry, VolumeGeometry):
        _, (y0, y1), (x0, x1) = _covered(geometry)
        return x0, y0, x1, y1
    (top, bottom), (left, right) = geometry.covered
    return left, top, right, bottom


def depth(geometry: AnyGeometry) -> tuple[float, float] | None:
    """The slices (z0, z1) that the patch grid covers; None on a radiograph."""
    return _covered(geometry)[0] if isinstance(geometry, VolumeGeometry) else None


def contours(grid: Float, geometry: AnyGeometry, threshold: float, side: int, z: int | None) -> list[list[list[float]]]:
    """Closed lines of [x, y] around what lies above ``threshold`` (a logit), on slice ``z`` of a volume."""
    plane = _plane(grid, geometry, side, z)
    height, width = _shape(geometry)[-2:]
    down, across = height / plane.shape[0], width / plane.shape[1]
    # A rim below every value closes the lines at the image's border.
    rim = np.pad(plane, 1, constant_values=min(float(plane.min()), threshold) - 1.0)
    x = np.concatenate([[0.0], (np.arange(plane.shape[1]) + 0.5) * across, [width]])
    y = np.concatenate([[0.0], (np.arange(plane.shape[0]) + 0.5) * down, [height]])
    lines = contourpy.contour_generator(x=x, y=y, z=rim).lines(threshold)
    return [np.round(np.asarray(line, dtype=np.float64), 1).tolist() for line in lines if len(line) > 2]


def mask(grid: Float, geometry: AnyGeometry, threshold: float) -> Bool:
    """What lies above ``threshold`` (a logit), at the image's own size (H, W) or (Z, Y, X)."""
    if isinstance(geometry, Geometry):
        above: Bool = geometry.restore(grid) >= threshold
        return above
    out = np.empty(geometry.shape, dtype=bool)
    # A slab at a time: in floating point the whole volume would take gigabytes.
    for start in range(0, len(out), _SLAB):
        part = slice(start, start + _SLAB)
        out[part] = geometry.restore(grid, part) >= threshold
    return out


def levels(grid: Float, geometry: AnyGeometry) -> UInt16:
    """sigmoid(map) at the image's own size, (H, W) or (Z, Y, X), in steps of 1 / ``LEVELS``."""
    if isinstance(geometry, Geometry):
        return _to_levels(geometry.restore(grid))
    out = np.empty(geometry.shape, dtype=np.uint16)
    for start in range(0, len(out), _SLAB):
        part = slice(start, start + _SLAB)
        out[part] = _to_levels(geometry.restore(grid, part))
    return out


def runs(above: Bool) -> Mask:
    """``above`` as run lengths."""
    return Mask.from_array(above)


def encode_array(grid: Float) -> str:
    """``grid`` as base64 of its little-endian float32 values, row by row."""
    return base64.b64encode(np.ascontiguousarray(grid, dtype="<f4").tobytes()).decode()


def encode_png(grid: Float, geometry: AnyGeometry, side: int, z: int | None = None) -> str:
    """sigmoid(map) at the image's aspect as a base64 8-bit greyscale PNG, longest side at most ``side``.

    ``z`` is the slice of a volume.
    """
    values = expit(_plane(grid, geometry, side, z))
    file = io.BytesIO()
    PillowImage.fromarray(np.round(values * 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def logit(probability: float) -> float:
    """The logit of a probability strictly between 0 and 1."""
    return math.log(probability / (1.0 - probability))


def sigmoid(value: float) -> float:
    """The probability of a logit; safe for large magnitudes."""
    return 0.5 * (1.0 + math.tanh(0.5 * value))


def _to_levels(map_logits: Float) -> UInt16:
    scaled: UInt16 = np.round(expit(map_logits) * LEVELS).astype(np.uint16)
    return scaled


def _shape(geometry: AnyGeometry) -> tuple[int, ...]:
    return geometry.shape if isinstance(geometry, VolumeGeometry) else (geometry.height, geometry.width)


def _canvas(grid: Float, geometry: AnyGeometry) -> Float:
    """The whole map on a grid fine enough to measure it."""
    if isinstance(geometry, VolumeGeometry):
        slices = min(geometry.shape[0], _CANVAS_SLICES)
        return _scaled(geometry, (slices, *_within(geometry.shape[1:], _SECTION_SIDE))).restore(grid)
    return _plane(grid, geometry, _CANVAS_SIDE, None)


def _plane(grid: Float, geometry: AnyGeometry, side: int, z: int | None) -> Float:
    """The map of a radiograph, or of slice ``z`` of a volume, with its longest side at most ``side``."""
    if isinstance(geometry, VolumeGeometry):
        assert z is not None, "a volume is drawn by the slice"
        scaled = _scaled(geometry, (geometry.shape[0], *_within(geometry.shape[1:], side)))
        section: Float = scaled.restore(grid, slice(z, z + 1))[0]
        return section
    height, width = _within((geometry.height, geometry.width), side)
    return replace(geometry, height=height, width=width).restore(grid)


def _scaled(geometry: VolumeGeometry, shape: tuple[int, int, int]) -> VolumeGeometry:
    """The same body on another grid of voxels."""
    z, y, x = (
        spacing * count / other
        for spacing, count, other in zip(geometry.spacing_mm, geometry.shape, shape, strict=True)
    )
    return replace(geometry, shape=shape, spacing_mm=(z, y, x))


def _within(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _covered(geometry: VolumeGeometry) -> list[tuple[float, float]]:
    """Of each axis, the voxels [from, to) that the input's samples cover."""
    out = []
    for axis in geometry.axes:
        first, last = axis.positions(np.array([-0.5, axis.size - 0.5]))
        out.append((round(float(first) + 0.5, 2), round(float(last) + 0.5, 2)))
    return out
