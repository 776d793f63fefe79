"""From a stored radiograph to an encoder's input, and from a map on that input back to the radiograph.

No torch here: ingest and Ray Data tasks import this module many times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image as PillowImage

from rayzero.config import DataConfig, Intensity
from rayzero.studies.study import Image

Float = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Geometry:
    """How an image of ``height`` x ``width`` pixels was laid on the encoder's square input.

    ``crop`` is the side of the centred square of it that went in, over its own.
    """

    height: int
    width: int
    kind: Literal["stretch", "pad"]
    crop: float = 1.0

    @property
    def covered(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of the image, first and end, that the input shows; they overhang one that was padded."""
        side = max(self.height, self.width)
        rows, columns = (
            _centred(side if self.kind == "pad" else size, size, self.crop) for size in (self.height, self.width)
        )
        return rows, columns

    def restore(self, grid: Float) -> Float:
        """A map (h, w) on the encoder's input as (height, width), bilinear, pixel centres aligned.

        ``pad`` undoes the centred zero padding to a square (RadZero spec, section 7). Pixels that the centre crop
        left out take the least value of the map: nothing was found there.
        """
        (top, bottom), (left, right) = self.covered
        shown = _resize(grid, bottom - top, right - left)
        restored = np.full((self.height, self.width), grid.min(), dtype=np.float32)
        rows, columns = slice(max(0, top), bottom), slice(max(0, left), right)
        inside = restored[rows, columns]
        inside[:] = shown[rows.start - top :, columns.start - left :][: inside.shape[0], : inside.shape[1]]
        return restored


def prepare(image: Image, data: DataConfig, resolution: int) -> tuple[Float, Geometry]:
    """``image`` as (1, resolution, resolution) in [0, 1] with its geometry.

    Raises ValueError for a volume: this preprocessing is for radiographs.
    """
    if len(image.shape) != 2:
        raise ValueError(f"image {image.image_id} has shape {image.shape}; this model reads radiographs (H, W)")
    height, width = image.shape
    unit = to_unit(image, data.intensity)
    if data.geometry == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        unit = np.pad(unit, ((top, side - height - top), (left, side - width - left)))
    side = round(resolution / data.crop)
    first = (side - resolution) // 2
    shown = _resize(unit, side, side)[first : first + resolution, first : first + resolution]
    return np.ascontiguousarray(shown)[None], Geometry(height, width, data.geometry, data.crop)


def _centred(whole: int, size: int, crop: float) -> tuple[int, int]:
    """Where ``crop`` of ``whole`` pixels begins and ends, both centred on ``size`` pixels that count from 0."""
    shown = max(1, round(crop * whole))
    first = (whole - shown) // 2 - (whole - size) // 2
    return first, first + shown


def to_unit(image: Image, intensity: Intensity) -> Float:
    """The radiograph in [0, 1], air dark, by a named preset.

    * ``voi``: the file's display window and curve, or the 0.5th to 99.5th percentile where it has none.
    * ``minmax``: the full range stretched; RadZero's classification protocol does so before its encoder.
    * ``radzero``, ``alta``: 8 bits by division by the maximum of the file's values, MONOCHROME1 inverted after, as
      both published pipelines read DICOM; a raised black level stays.
    * ``carzero``: 8-bit files as they are; deeper ones as MIMIC-CXR-JPG was made, from which CARZero was trained:
      stretched to 8 bits, then histogram-equalised.

    All but ``voi`` ignore the file's window.
    """
    pixels = image.array()
    if intensity in ("radzero", "alta"):
        return _by_maximum(image)
    if intensity == "carzero" and pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    if intensity in ("carzero", "minmax"):
        unit = _stretch(pixels, float(pixels.min()), float(pixels.max()))
        return _equalise(unit) if intensity == "carzero" else unit
    centre, width = display_window(image)
    unit = _stretch(pixels, centre - width / 2, centre + width / 2)
    if not image.curve:
        return unit
    return np.interp(unit, np.linspace(0, 1, len(image.curve)), image.curve).astype(np.float32)


def display_window(image: Image) -> tuple[float, float]:
    """Centre and width, in stored values, of the file's window, or of the 0.5th to 99.5th percentile without one."""
    if len(image.window) == 2:
        centre, width = image.window
        return centre, width
    low, high = (float(value) for value in np.percentile(image.array(), (0.5, 99.5)))
    return (low + high) / 2, high - low


def _stretch(pixels: np.ndarray[Any, Any], low: float, high: float) -> Float:
    scaled = pixels.astype(np.float32)
    scaled -= np.float32(low)
    scaled /= np.float32(max(high - low, 1e-6))
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def _by_maximum(image: Image) -> Float:
    """The file's own values over their maximum, in 255 steps; the inversion of the store is undone for that."""
    stored = image.array().astype(np.float32)
    if image.inverted:
        top = -1 if image.dtype == "int16" else 2**image.bits - 1
        stored = top - stored
    scaled: Float = np.clip(np.rint(stored * np.float32(255 / max(float(stored.max()), 1e-6))), 0, 255) / np.float32(
        255
    )
    return np.float32(1) - scaled if image.inverted else scaled


def _equalise(unit: Float) -> Float:
    """Histogram equalisation of 256 grey levels: a level becomes the share of pixels between it and the darkest."""
    levels = np.rint(unit * 255).astype(np.uint8)
    counts = np.bincount(levels.ravel(), minlength=256)
    darkest = counts[np.flatnonzero(counts)[0]]
    shares = (np.cumsum(counts) - darkest) / max(levels.size - darkest, 1)
    table = np.clip(np.rint(shares * 255), 0, 255).astype(np.float32) / np.float32(255)
    equalised: Float = table[levels]
    return equalised


def _resize(array: Float, height: int, width: int) -> Float:
    source = PillowImage.fromarray(np.ascontiguousarray(array, dtype=np.float32), mode="F")
    resized = source.resize((width, height), PillowImage.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)
