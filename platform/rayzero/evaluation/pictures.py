"""Small pictures of images, as a report shows them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image as PillowImage

from rayzero.config import Intensity
from rayzero.studies.preprocess import to_unit
from rayzero.studies.study import Image

_SIDE = 448
# Hounsfield units from black to white: lungs, mediastinum and bone are told apart in one picture.
_CT_WINDOW = (-1000.0, 400.0)


def radiograph_picture(image: Image, intensity: Intensity) -> bytes:
    """A radiograph as a JPEG, at most 448 pixels a side."""
    return _jpeg(to_unit(image, intensity))


def section_picture(volume: np.ndarray, section: int) -> bytes:  # type: ignore[type-arg]
    """Axial slice ``section`` of a volume (Z, Y, X) in HU as a JPEG, the patient's front at the top."""
    low, high = _CT_WINDOW
    return _jpeg(np.clip((volume[section].astype(np.float32) - low) / (high - low), 0.0, 1.0))


def _jpeg(unit: np.ndarray) -> bytes:  # type: ignore[type-arg]
    picture = PillowImage.fromarray(np.round(unit * 255).astype(np.uint8))
    # Slices of a coarse volume are drawn larger: outlines on them would be coarser than the slice itself.
    scale = _SIDE / max(picture.size)
    side = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(side, PillowImage.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return file.getvalue()
