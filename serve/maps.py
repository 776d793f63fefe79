"""From a map on the patch grid to what a reader asks: where the peak is, which box holds it, and a picture."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from scipy import ndimage
from scipy.special import expit

from rayzero.studies.preprocess import Geometry

Float = np.ndarray[Any, np.dtype[np.float32]]

# Boxes and areas are measured on the map resized to this longest side: a patch grid of at most 64 cells a side
# carries no finer detail, and a film of nine megapixels times fourteen findings would take seconds.
_CANVAS_SIDE = 256


@dataclass(frozen=True)
class Located:
    """Where a finding is, in pixels of the image: ``peak`` (x, y), half-open ``box`` (x0, y0, x1, y1) or None.

    ``box`` bounds the connected area above the threshold that holds the peak; ``area_fraction`` is the share of
    the image above the threshold.
    """

    peak: tuple[int, int]
    box: tuple[int, int, int, int] | None
    area_fraction: float


def locate(grid: Float, geometry: Geometry, threshold: float) -> Located:
    """Peak, box and area of a map (h, w) of logits at ``threshold`` (a logit)."""
    canvas = _restore(grid, geometry, _CANVAS_SIDE)
    rows, columns = canvas.shape
    down, across = geometry.height / rows, geometry.width / columns
    y, x = (int(index) for index in np.unravel_index(int(canvas.argmax()), canvas.shape))
    above = canvas >= threshold
    box = None
    if above[y, x]:
        labels, _ = ndimage.label(above)
        ys, xs = ndimage.find_objects(labels)[labels[y, x] - 1]
        left, top = math.floor(xs.start * across), math.floor(ys.start * down)
        right, bottom = math.ceil(xs.stop * across), math.ceil(ys.stop * down)
        box = (left, top, min(right, geometry.width), min(bottom, geometry.height))
    peak = (int((x + 0.5) * across), int((y + 0.5) * down))
    return Located(peak, box, float(above.mean()))


def extent(geometry: Geometry) -> tuple[int, int, int, int]:
    """The box of the image (x0, y0, x1, y1) that the patch grid covers; it overhangs a padded image."""
    if geometry.kind == "stretch":
        return 0, 0, geometry.width, geometry.height
    side = max(geometry.height, geometry.width)
    top, left = (side - geometry.height) // 2, (side - geometry.width) // 2
    return -left, -top, side - left, side - top


def encode_array(grid: Float) -> str:
    """``grid`` as base64 of its little-endian float32 values, row by row."""
    return base64.b64encode(np.ascontiguousarray(grid, dtype="<f4").tobytes()).decode()


def encode_png(grid: Float, geometry: Geometry, side: int) -> str:
    """sigmoid(map) at the image's aspect as a base64 8-bit greyscale PNG, longest side at most ``side``."""
    values = expit(_restore(grid, geometry, side))
    file = io.BytesIO()
    PillowImage.fromarray(np.round(values * 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def logit(probability: float) -> float:
    """The logit of a probability strictly between 0 and 1."""
    return math.log(probability / (1.0 - probability))


def sigmoid(value: float) -> float:
    """The probability of a logit; safe for large magnitudes."""
    return 0.5 * (1.0 + math.tanh(0.5 * value))


def _restore(grid: Float, geometry: Geometry, side: int) -> Float:
    scale = min(1.0, side / max(geometry.height, geometry.width))
    height, width = (max(1, round(length * scale)) for length in (geometry.height, geometry.width))
    return Geometry(height, width, geometry.kind).restore(grid)
