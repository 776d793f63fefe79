"""Pixel data of one DICOM frame, in every transfer syntax that radiographs come in.

Native and deflated pixel data, JPEG-LS and JPEG 2000 go through pydicom's own plugins. The JPEG family (8 and 12 bits,
lossless) and run lengths go through imagecodecs, which is registered as a pydicom plugin here: it is the one
decoder without a copyleft licence that reads all of them. A coded image states its size once more; it is compared
with the header before anything is decoded, so that no frame escapes the limit on pixels.
"""

from __future__ import annotations

import struct
import warnings
from typing import Any

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.dataset import FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.pixels.utils import pixel_array

from rayzero.errors import first_line
from rayzero.studies.errors import StudyFileError

_NATIVE = {
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
}
_JPEG = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1}
_JPEG_LS = {uid.JPEGLSLossless, uid.JPEGLSNearLossless}
_JPEG_2000 = {uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}

TRANSFER_SYNTAXES = frozenset(_NATIVE | _JPEG | _JPEG_LS | _JPEG_2000 | {uid.RLELossless})
"""The codings that are read."""

DECODER_DEPENDENCIES = dict.fromkeys((*_JPEG, uid.RLELossless), ("numpy", "imagecodecs"))
"""Part of pydicom's plugin interface."""

_PLUGIN = "imagecodecs"
# imagecodecs loads a codec when it is first named; a confined process (rayzero.studies.sandbox) could not any more.
_decode_jpeg, _decode_runs = imagecodecs.jpeg8_decode, imagecodecs.dicomrle_decode


def is_available(_: str) -> bool:
    """Part of pydicom's plugin interface."""
    return True


def decode(dataset: FileDataset) -> np.ndarray[Any, Any]:
    """The stored values (H, W) of the one frame in ``dataset``, as uint8, uint16 or int16.

    The header must have been checked. Raises StudyFileError.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        _check_coded_size(dataset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Unsigned values are taken as they are, so that a wrong BitsStored is seen instead of masked away.
            signed = bool(dataset.PixelRepresentation)
            plugin = _PLUGIN if syntax in DECODER_DEPENDENCIES else ""
            pixels = pixel_array(dataset, correct_unused_bits=signed, decoding_plugin=plugin)
    except StudyFileError:
        raise
    except Exception as error:  # each decoder raises its own types
        name = uid.UID(syntax).name
        raise StudyFileError("decode", f"the {name} pixel data does not decode ({first_line(error)})") from error
    if pixels.ndim != 2:
        raise StudyFileError("decode", f"the pixel data decodes to shape {pixels.shape}; a radiograph has two axes")
    return pixels.astype(np.int16) if pixels.dtype == np.int8 else pixels


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes:
    """One JPEG or run-length frame as the bytes of its values: pydicom's plugin interface."""
    shape = (runner.rows, runner.columns)
    values: np.ndarray[Any, Any]
    if runner.transfer_syntax == uid.RLELossless:
        dtype = np.dtype(f"<u{runner.bits_allocated // 8}")
        values = np.frombuffer(_decode_runs(frame, dtype=dtype), dtype)
        if values.size != shape[0] * shape[1]:
            raise ValueError(f"the runs hold {values.size} values of {shape[0]}x{shape[1]}")
    else:
        values = _decode_jpeg(frame)
        if values.shape != shape:
            raise ValueError(f"the coded image has shape {values.shape}")
        runner.set_option("bits_allocated", 8 * values.itemsize)
    return bytes(values.tobytes())


def _check_coded_size(dataset: FileDataset) -> None:
    """Refuse a coded image whose own size is not the header's."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _NATIVE or syntax == uid.RLELossless:  # their size is the header's alone
        return
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    size = _size_of_jpeg_2000(frame) if syntax in _JPEG_2000 else _size_of_jpeg(frame)
    if size is None:
        raise ValueError("the coded image states no size")
    if size != (dataset.Rows, dataset.Columns):
        reason = f"the coded image is {size[0]}x{size[1]}, the header says {dataset.Rows}x{dataset.Columns}"
        raise StudyFileError("decode", reason)


def _size_of_jpeg(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) in the frame header (SOF marker) of a JPEG or JPEG-LS stream; None when it has none."""
    position = 2
    while position + 9 <= len(frame):
        if frame[position] != 0xFF:
            return None
        marker = frame[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # padding, and markers without a segment
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack_from(">HH", frame, position + 5)
            return rows, columns
        position += 2 + int(struct.unpack_from(">H", frame, position + 2)[0])
    return None


def _size_of_jpeg_2000(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) in the SIZ segment of a JPEG 2000 codestream, bare or in a JP2 box; None when it has none."""
    start = frame.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(frame) < start + 24:
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", frame, start + 8)
    return bottom - top, right - left


def _register() -> None:
    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if _PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(_PLUGIN, (__name__, decode_frame.__name__))


_register()
