"""Images that clients sent: read once, kept for a while, and referred to by the hash of their file."""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage

from rayzero.studies.errors import StudyFileError
from rayzero.studies.files import read_image
from rayzero.studies.preprocess import to_unit
from rayzero.studies.study import Image
from serve.cache import LruCache
from serve.problems import Problem
from serve.settings import Limits

logger = logging.getLogger("ray.serve")

_VOLUME = "This model reads radiographs: one DICOM, PNG or JPEG file of one film, not a volume or an archive."


@dataclass(frozen=True)
class StoredImage:
    """A decoded radiograph and the id by which later requests may refer to it."""

    image_id: str
    image: Image

    @property
    def height(self) -> int:
        """Rows."""
        return self.image.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.image.shape[1]


def image_id_of(data: bytes) -> str:
    """The id of the image in a file: nobody who lacks the file can guess it."""
    return "img-" + hashlib.sha256(data).hexdigest()[:32]


class ImageStore:
    """The images that this process read lately. Its methods work on pixels: call them off the event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._images: LruCache[StoredImage] = LruCache(limits.image_cache_bytes, lambda kept: len(kept.image.pixels))
        self._previews: LruCache[bytes] = LruCache(limits.image_cache_bytes // 8, len)

    def get(self, image_id: str) -> StoredImage | None:
        """The image, or None when it was never here or was dropped for newer ones."""
        return self._images.get(image_id)

    def add(self, data: bytes) -> StoredImage:
        """Read a DICOM, PNG or JPEG file and keep its image. Raises Problem (4xx) that says what is wrong with it."""
        image_id = image_id_of(data)
        known = self._images.get(image_id)
        if known is not None:
            return known
        stored = StoredImage(image_id, _read(data, self._limits))
        self._images.put(image_id, stored)
        return stored

    def preview(self, stored: StoredImage) -> bytes:
        """The image as a windowed 8-bit greyscale PNG, its longest side within the limit."""
        known = self._previews.get(stored.image_id)
        if known is not None:
            return known
        picture = PillowImage.fromarray(np.round(to_unit(stored.image, "voi") * 255).astype(np.uint8))
        side = self._limits.preview_side
        picture.thumbnail((side, side), PillowImage.Resampling.BOX)
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=3)
        self._previews.put(stored.image_id, file.getvalue())
        return file.getvalue()


def _read(data: bytes, limits: Limits) -> Image:
    if not data:
        raise Problem(422, "empty-file", "The file holds no bytes; send it again.", field="file")
    if len(data) > limits.file_bytes:
        detail = f"The file has {len(data)} bytes; at most {limits.file_bytes} are read."
        raise Problem(413, "file-too-large", detail, field="file")
    if _is_volume(data):
        raise Problem(415, "unsupported-image", _VOLUME, field="file")
    try:
        image = read_image(data)
    except StudyFileError as error:
        raise Problem(
            422, "unreadable-file", f"Reading stopped at {error.stage}: {error.reason}", field="file"
        ) from None
    except Exception as error:
        # The bytes are a stranger's: whatever a decoder raises on them is a fault of the file, not of the server.
        logger.warning("a file made the decoder raise %s", type(error).__name__)
        detail = "The file is damaged or not a DICOM, PNG or JPEG image."
        raise Problem(422, "unreadable-file", detail, field="file") from error
    if len(image.shape) != 2:
        raise Problem(415, "unsupported-image", _VOLUME, field="file")
    if image.shape[0] * image.shape[1] > limits.pixels:
        detail = f"The image has {image.shape[1]} x {image.shape[0]} pixels; at most {limits.pixels} are read."
        raise Problem(413, "image-too-large", detail, field="file")
    return image


def _is_volume(data: bytes) -> bool:
    """True for a zip (a DICOM series), gzip (compressed NIfTI) or NIfTI file."""
    return data.startswith((b"PK\x03\x04", b"\x1f\x8b")) or data[344:348] in (b"n+1\0", b"ni1\0")
