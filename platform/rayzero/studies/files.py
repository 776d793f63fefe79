"""One image out of a file's bytes, told apart by content and never by its name."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageOps

from rayzero.studies.dicom import MAX_PIXELS, read_radiograph
from rayzero.studies.errors import StudyFileError
from rayzero.studies.sidecar import with_attributes
from rayzero.studies.study import Image

ACCEPTED = "DICOM, PNG or JPEG"

_BARE_DICOM = b"\x02\x00\x00\x00UL\x04\x00"  # file meta information with the 128-byte preamble cut off
_OTHER = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%PDF", "a PDF document"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"RIFF", "a RIFF (WebP, WAV or AVI) file"),
    (b"\x5c\x01\x00\x00", "a NIfTI volume"),
    (b"\x93NUMPY", "a NumPy array"),
)


def read_image(data: bytes, *, name: str = "", attributes: str = "") -> Image:
    """The radiograph in ``data``: DICOM, PNG (8 or 16 bits) or JPEG.

    ``name`` becomes the ``image_id``. Colour PNG and JPEG become luma and an alpha channel is dropped. Such files
    state no view, spacing or window, unless ``attributes``, JSON text, has those of the DICOM file that it was made
    from (``rayzero.studies.sidecar``). Raises StudyFileError.
    """
    if data[128:132] == b"DICM":
        return read_radiograph(data, image_id=name or None)
    if data.startswith(_BARE_DICOM):
        return read_radiograph(bytes(128) + b"DICM" + data, image_id=name or None)
    if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        image = _read_raster(data, name or "radiograph")
        return with_attributes(image, attributes) if attributes else image
    raise StudyFileError("open", f"the file is {_describe(data)}; give {ACCEPTED}")


def _read_raster(data: bytes, image_id: str) -> Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit below is stricter than Pillow's warning
            image = PillowImage.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise StudyFileError("header", f"an image of {height}x{width} is beyond {MAX_PIXELS:,} pixels")
        grey = _grey(ImageOps.exif_transpose(image))
    except StudyFileError:
        raise
    except PillowImage.DecompressionBombError:
        raise StudyFileError("header", f"the image is beyond {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, zlib.error, struct.error
        kind = "PNG" if data.startswith(b"\x89") else "JPEG"
        raise StudyFileError("decode", f"the {kind} file is damaged or cut short ({error})") from error
    return Image.from_array(image_id, grey, view="unknown", bits=8 * grey.dtype.itemsize)


def _grey(image: PillowImage.Image) -> np.ndarray[Any, Any]:
    """(H, W) uint8, or uint16 for 16-bit grey, whose conversion through ``L`` or ``RGB`` would saturate."""
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)
    return np.asarray(image.convert("L"))


def _describe(data: bytes) -> str:
    if not data:
        return "empty"
    for magic, kind in _OTHER:
        if data.startswith(magic):
            return kind
    head = data[:512]
    try:
        text = head.decode("utf-8", errors="strict" if len(data) <= 512 else "ignore")
    except UnicodeDecodeError:
        return "of an unknown format"
    printable = text.isprintable() or all(c.isprintable() or c.isspace() for c in text)
    return "plain text" if printable and len(text) > len(head) // 2 else "of an unknown format"
