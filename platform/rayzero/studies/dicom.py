"""Radiographs out of DICOM files: lossless grey values, bone bright, with window, spacing and view.

Only the header attributes listed in ``_ATTRIBUTES`` are ever parsed, so names, identifiers, dates and free
text of the patient cannot reach a result. Pixel values stay the stored integers: a linear modality transform
moves into the window instead of the pixels, and MONOCHROME1 is inverted about the range of ``BitsStored``.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from PIL import Image as PillowImage
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array

from rayzero.studies.errors import StudyFileError
from rayzero.studies.study import Image, View

MAX_PIXELS = 64 * 2**20
"""Largest radiograph that is decoded, in pixels: four times the largest detector in use."""

_ATTRIBUTES = [
    "SOPClassUID", "ViewPosition", "ViewCodeSequence", "ImagerPixelSpacing", "PixelSpacing",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "WindowCenter", "WindowWidth", "PixelData",
]  # fmt: skip

_SOP_CLASSES = {
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalXRayImageStorageForProcessing,
    uid.SecondaryCaptureImageStorage,
}

_NATIVE = {
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
}
_WITH_CODESTREAM_SIZE = {uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.JPEG2000}
_ENCAPSULATED = {uid.RLELossless, uid.JPEGLSLossless, uid.JPEGLSNearLossless} | _WITH_CODESTREAM_SIZE

_VIEWS: dict[str, View] = {
    **dict.fromkeys(("AP", "PA", "ANTERO POSTERIOR", "POSTERO ANTERIOR"), "frontal"),
    **dict.fromkeys(("LL", "RL", "LAT", "LATERAL", "LARGE LATERAL", "LEFT LATERAL", "RIGHT LATERAL"), "lateral"),
    **dict.fromkeys(
        ("LPO", "RPO", "LAO", "RAO", "AP AXIAL", "PA AXIAL", "XTABLE LATERAL", "AP LLD", "PA LLD", "AP RLD", "PA RLD",
         "LLD", "RLD", "L5 S1", "SWIMMERS", "OBLIQUE", "COSTAL"),
        "other",
    ),
}  # fmt: skip


def read_radiograph(data: bytes, *, image_id: str | None = None) -> Image:
    """The single-frame grey radiograph in ``data``, the bytes of one DICOM file.

    Pixels are (H, W) stored values with bone bright; ``spacing_mm`` is (row, column) in millimetres, empty when
    the file gives none that can be trusted; ``window`` is in the units of ``pixels``. ``image_id`` defaults to
    ``radiograph``. Raises StudyFileError.
    """
    dataset = parse(data, _ATTRIBUTES)
    _check_header(dataset)
    stored = decode(dataset)
    bits = int(dataset.BitsStored)
    check_range(stored, bits)
    if "ModalityLUTSequence" in dataset:
        stored, bits = _look_up(stored, dataset)
        slope, intercept = 1.0, 0.0
    else:
        slope, intercept = _rescale(dataset)
    window = _window(dataset, slope, intercept)
    # A negative slope reverses brightness once more, so the two inversions cancel.
    if (dataset.PhotometricInterpretation == "MONOCHROME1") != (slope < 0):
        stored, window = _invert(stored, window, bits)
    return Image.from_array(
        image_id or "radiograph",
        stored,
        view=_view(dataset),
        bits=bits,
        spacing_mm=_spacing(dataset),
        window=window,
    )


def view_named(text: str) -> View | None:
    """The view that a ViewPosition, or the meaning of a view code, stands for; None when it is not a known one."""
    return _VIEWS.get(" ".join(text.upper().replace("-", " ").replace("_", " ").split()))


def parse(data: bytes, attributes: Sequence[str]) -> FileDataset:
    """The listed ``attributes`` of the file; the rest of the header is skipped. Raises StudyFileError."""
    try:
        _check_inflated_size(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=list(attributes))
            # Elements are converted on access: touch each here, so that a damaged one is an error of this stage.
            for element in dataset:
                _ = element.value
    except InvalidDicomError:
        raise StudyFileError("open", "not a DICOM file: the DICM mark is missing at byte 128") from None
    except StudyFileError:
        raise
    except Exception as error:  # pydicom raises many types on damaged files
        raise StudyFileError("open", f"the DICOM header is damaged or cut short ({brief(error)})") from error
    return dataset


def _check_inflated_size(data: bytes) -> None:
    """Refuse a deflated file that expands beyond any radiograph, before it is expanded in full."""
    if data[128:132] != b"DICM" or data[132:138] != b"\x02\x00\x00\x00UL" or len(data) < 144:
        return
    end = 144 + int(struct.unpack_from("<I", data, 140)[0])
    if uid.DeflatedExplicitVRLittleEndian.encode() not in data[144:end]:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(data[end:], 2 * MAX_PIXELS + 2**24)
    if inflater.unconsumed_tail:
        raise StudyFileError("open", "the deflated file expands beyond the size of any radiograph")


def _check_header(dataset: FileDataset) -> None:
    """Refuse all that is not one grey radiograph of a sane size in a known coding."""
    check_syntax(dataset)
    sop_class = dataset.get("SOPClassUID")
    if sop_class and sop_class not in _SOP_CLASSES:
        raise StudyFileError("header", f"the file holds {uid.UID(sop_class).name}, not a radiograph")
    if "PixelData" not in dataset:
        raise StudyFileError("header", "the file holds no pixel data; it may be cut short")
    needed = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
    missing = [name for name in needed if dataset.get(name) in (None, "")]
    if missing:
        raise StudyFileError("header", f"the header lacks {', '.join(missing)}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise StudyFileError("header", f"the file holds {frames} frames; a radiograph has one")
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise StudyFileError("header", f"the pixels are {photometric}; a radiograph is MONOCHROME1 or MONOCHROME2")
    check_layout(dataset)


def check_syntax(dataset: FileDataset) -> None:
    """Refuse a coding of the pixels that nothing here decodes."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise StudyFileError("header", "the file names no transfer syntax")
    if syntax not in _NATIVE | _ENCAPSULATED:
        raise StudyFileError("header", f"transfer syntax {uid.UID(syntax).name} ({syntax}) is not supported")


def check_layout(dataset: Dataset) -> None:
    """Refuse a size beyond ``MAX_PIXELS``, and bits that do not fit their words."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
        raise StudyFileError("header", f"an image of {rows}x{columns} is outside 1 to {MAX_PIXELS:,} pixels")
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated not in (8, 16) or not 1 <= bits <= allocated:
        raise StudyFileError("header", f"{bits} bits stored in {allocated}; 8 and 16 allocated bits are supported")
    if int(dataset.get("HighBit", bits - 1)) != bits - 1:
        raise StudyFileError("header", f"HighBit {dataset.HighBit} does not fit {bits} stored bits")


def decode(dataset: FileDataset) -> np.ndarray[Any, Any]:
    """The stored values (H, W) as uint8, uint16 or int16."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        if syntax in _WITH_CODESTREAM_SIZE:
            _check_codestream(dataset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Unsigned values are taken as they are, so that a wrong BitsStored is seen instead of masked away.
            signed = bool(dataset.PixelRepresentation)
            pixels = pixel_array(dataset, correct_unused_bits=signed)
    except StudyFileError:
        raise
    except Exception as error:  # each decoder raises its own types
        name = uid.UID(syntax).name
        raise StudyFileError("decode", f"the {name} pixel data does not decode ({brief(error)})") from error
    if pixels.ndim != 2:
        raise StudyFileError("decode", f"the pixel data decodes to shape {pixels.shape}; an image has two axes")
    return pixels.astype(np.int16) if pixels.dtype == np.int8 else pixels


def _check_codestream(dataset: Dataset) -> None:
    """The coded image states a size of its own; one that differs from the header would escape the pixel limit."""
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    with PillowImage.open(io.BytesIO(frame)) as coded:
        if coded.size != (dataset.Columns, dataset.Rows):
            width, height = coded.size
            reason = f"the coded image is {height}x{width}, the header says {dataset.Rows}x{dataset.Columns}"
            raise StudyFileError("decode", reason)


def check_range(stored: np.ndarray[Any, Any], bits: int) -> None:
    """Refuse values beyond the range of ``bits``."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.dtype == np.int16 else (0, 2**bits - 1)
    seen_low, seen_high = int(stored.min()), int(stored.max())
    if seen_low < low or seen_high > high:
        reason = f"pixel values reach [{seen_low}, {seen_high}], beyond the [{low}, {high}] of {bits} stored bits"
        raise StudyFileError("pixels", reason)


def _look_up(stored: np.ndarray[Any, Any], dataset: Dataset) -> tuple[np.ndarray[Any, Any], int]:
    """The modality table applied, and the bits of its entries."""
    try:
        bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
        values = apply_modality_lut(stored, dataset)
    except Exception as error:
        raise StudyFileError("pixels", f"the modality LUT is damaged ({brief(error)})") from error
    if not 1 <= bits <= 16:
        raise StudyFileError("pixels", f"the modality LUT states {bits} bits an entry; 1 to 16 are supported")
    values = values.astype(np.uint8 if bits <= 8 else np.uint16)
    check_range(values, bits)
    return values, bits


def _rescale(dataset: Dataset) -> tuple[float, float]:
    slope, intercept = numbers(dataset.get("RescaleSlope")), numbers(dataset.get("RescaleIntercept"))
    if slope and (slope[0] == 0 or not np.isfinite(slope[0])):
        raise StudyFileError("header", f"RescaleSlope is {slope[0]:g}; it maps every pixel to one value")
    return (slope[0] if slope else 1.0), (intercept[0] if intercept else 0.0)


def _window(dataset: Dataset, slope: float, intercept: float) -> tuple[float, ...]:
    """The first display window, in stored values, or () when absent or of no width."""
    centres, widths = numbers(dataset.get("WindowCenter")), numbers(dataset.get("WindowWidth"))
    if not centres or not widths or not np.isfinite(centres[0]) or not 0 < widths[0] < np.inf:
        return ()
    return ((centres[0] - intercept) / slope, widths[0] / abs(slope))


def _invert(
    stored: np.ndarray[Any, Any], window: tuple[float, ...], bits: int
) -> tuple[np.ndarray[Any, Any], tuple[float, ...]]:
    """Black for white about the range of ``bits``: exact in integers, and its own inverse."""
    top = -1 if stored.dtype == np.int16 else 2**bits - 1
    inverted = (top - stored.astype(np.int32)).astype(stored.dtype)
    return inverted, ((top - window[0], window[1]) if window else ())


def _spacing(dataset: Dataset) -> tuple[float, ...]:
    # The detector plane comes first: PixelSpacing of a projection may be calibrated to any plane, or be [0, 0].
    for name in ("ImagerPixelSpacing", "PixelSpacing"):
        values = numbers(dataset.get(name))
        if len(values) == 2 and all(0 < value < np.inf for value in values):
            return tuple(values)
    return ()


def _view(dataset: Dataset) -> View:
    codes = dataset.get("ViewCodeSequence") or []
    meanings = [str(code.get("CodeMeaning", "")) for code in codes]
    named = (view_named(text) for text in [str(dataset.get("ViewPosition") or ""), *meanings])
    return next((view for view in named if view), "unknown")


def numbers(value: Any) -> list[float]:
    """A DICOM number, list of numbers, or empty element as a list."""
    if value is None or value == "":
        return []
    return [float(item) for item in (value if isinstance(value, Sequence) else [value])]


def brief(error: Exception) -> str:
    """The first line of a library's message, short enough for a table cell."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
