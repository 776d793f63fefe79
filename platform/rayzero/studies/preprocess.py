"""From a stored radiograph to an encoder's input, and from a map on that input back to the radiograph.

No torch here: ingest and Ray Data tasks import this module many times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image as PillowImage

from rayzero.config import DataConfig
from rayzero.studies.study import Image

Float = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Geometry:
    """How an image of ``height`` x ``width`` pixels was laid on the encoder's square input."""

    height: int
    width: int
    kind: Literal["stretch", "pad"]

    def restore(self, grid: Float) -> Float:
        """A map (h, w) on the encoder's input as (height, width), bilinear, pixel centres aligned.

        ``pad`` undoes the centred zero padding to a square first (RadZero spec, section 7).
        """
        if self.kind == "stretch":
            return _resize(grid, self.height, self.width)
        side = max(self.height, self.width)
        top, left = (side - self.height) // 2, (side - self.width) // 2
        square = _resize(grid, side, side)
        return square[top : top + self.height, left : left + self.width]


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
    return _resize(unit, resolution, resolution)[None], Geometry(height, width, data.geometry)


def to_unit(image: Image, intensity: str) -> Float:
    """The radiograph in [0, 1], air dark.

    ``voi`` applies the file's display window, or the 0.5th to 99.5th percentile where it has none; ``minmax``
    stretches the full range; ``radzero`` divides by the maximum alone, as the published pipeline reads DICOM.
    """
    pixels = image.array().astype(np.float32)
    if intensity == "radzero":
        low, high = 0.0, float(pixels.max())
    elif intensity == "minmax":
        low, high = float(pixels.min()), float(pixels.max())
    elif len(image.window) == 2:
        low, high = image.window[0] - image.window[1] / 2, image.window[0] + image.window[1] / 2
    else:
        low, high = (float(value) for value in np.percentile(pixels, (0.5, 99.5)))
    scaled = (pixels - low) / max(high - low, 1e-6)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def _resize(array: Float, height: int, width: int) -> Float:
    source = PillowImage.fromarray(np.ascontiguousarray(array, dtype=np.float32), mode="F")
    resized = source.resize((width, height), PillowImage.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)
