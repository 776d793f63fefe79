"""Radiographs out of DICOM files: lossless grey values, bone bright, with window, spacing and view.

Pixel values stay the stored integers: a linear modality transform moves into the window instead of the pixels, and
what shows air bright is mirrored about the range of ``BitsStored`` (see ``rayzero.studies.display``).
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Sequence

import pydicom
from pydicom import uid
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset

from rayzero.studies.codecs import TRANSFER_SYNTAXES, decode
from rayzero.studies.display import numbers, to_display
from rayzero.studies.errors import StudyFileError, shown
from rayzero.studies.study import Image, View
from rayzero.studies.views import view_named

MAX_PIXELS = 64 * 2**20
"""Largest radiograph that is decoded, in pixels: four times the largest detector in use."""

ATTRIBUTES = (
    "SOPClassUID", "ViewPosition", "ViewCodeSequence", "ImagerPixelSpacing", "PixelSpacing", "BurnedInAnnotation",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PixelData",
)  # fmt: skip
"""All that is ever parsed of a header. None is in the table of attributes that the Basic Application Level
Confidentiality Profile removes or replaces (PS3.15, table E.1-1), so no identifying one can reach a result: for a
view, AcquisitionDeviceProcessingDescription is left out, free text that the profile removes."""

_SPACING_MM = (0.01, 10.0)  # finer or coarser than any detector: a header in other units, or made up

_SOP_CLASSES = {
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalXRayImageStorageForProcessing,
    uid.SecondaryCaptureImageStorage,
}


def read_radiograph(data: bytes, *, image_id: str | None = None) -> Image:
    """The single-frame grey radiograph in ``data``, the bytes of one DICOM file.

    Pixels are (H, W) stored values with bone bright; ``spacing_mm`` is (row, column) in millimetres, empty when
    the file gives none that can be trusted; ``window`` is in the units of ``pixels``. ``image_id`` defaults to
    ``radiograph``. Raises StudyFileError.
    """
    dataset = parse(data, ATTRIBUTES)
    _check_header(dataset)
    shown = to_display(decode(dataset), dataset)
    return Image.from_array(
        image_id or "radiograph",
        shown.pixels,
        view=_view(dataset),
        bits=shown.bits,
        spacing_mm=spacing_of(dataset),
        window=shown.window,
        curve=shown.curve,
        inverted=shown.inverted,
    )


def parse(data: bytes, attributes: Sequence[str]) -> FileDataset:
    """The listed ``attributes`` of the file; the rest of the header is skipped. Raises StudyFileError."""
    reached: int | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_inflated_size(data)
            dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=list(attributes))
            # Elements are converted on access: touch each here, so that a damaged one is an error of this stage.
            for reached in sorted(dataset.keys()):
                _ = dataset[reached].value
    except InvalidDicomError:
        raise StudyFileError("open", "not a DICOM file: the DICM mark is missing at byte 128") from None
    except StudyFileError:
        raise
    except Exception as error:  # pydicom raises many types on damaged files
        # Its text is not passed on: it may repeat a value, and any value may be the patient's name.
        kind = type(error)
        cause = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        place = "" if reached is None else f" at {keyword_for_tag(reached) or 'an unknown element'}"
        raise StudyFileError("open", f"the DICOM header is damaged or cut short{place} ({cause})") from error
    return dataset


def _check_inflated_size(data: bytes) -> None:
    """Refuse a deflated file that expands beyond any radiograph, before it is expanded in full."""
    if data[128:132] != b"DICM":
        return
    file = io.BytesIO(data)
    file.seek(132)
    # By the parser that will expand the file, which goes by the tags: the group's length may be absent, or a lie.
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(data[file.tell() :], 2 * MAX_PIXELS + 2**24)
    if inflater.unconsumed_tail:
        raise StudyFileError("open", "the deflated file expands beyond the size of any radiograph")


def _check_header(dataset: FileDataset) -> None:
    """Refuse all that is not one grey radiograph of a sane size in a known coding."""
    check_syntax(dataset)
    sop_class = dataset.get("SOPClassUID")
    if sop_class and sop_class not in _SOP_CLASSES:
        raise StudyFileError("header", f"the file holds {uid.UID(shown(sop_class)).name}, not a radiograph")
    if "PixelData" not in dataset:
        raise StudyFileError("header", "the file holds no pixel data; it may be cut short")
    needed = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
    missing = [name for name in needed if dataset.get(name) in (None, "")]
    if missing:
        raise StudyFileError("header", f"the header lacks {', '.join(missing)}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise StudyFileError("header", f"the file holds {frames} frames; a radiograph has one")
    check_picture(dataset)
    check_layout(dataset)


def check_picture(dataset: Dataset) -> None:
    """Refuse what is no grey image, and one with text in it. ``PhotometricInterpretation`` must be there."""
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise StudyFileError(
            "header", f"the pixels are {shown(photometric)}; a radiograph is MONOCHROME1 or MONOCHROME2"
        )
    if str(dataset.get("BurnedInAnnotation") or "").upper() == "YES":
        raise StudyFileError("header", "BurnedInAnnotation is YES: text in the pixels may identify the patient")


def check_syntax(dataset: FileDataset) -> None:
    """Refuse a coding of the pixels that nothing here decodes."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise StudyFileError("header", "the file names no transfer syntax")
    if syntax not in TRANSFER_SYNTAXES:
        raise StudyFileError(
            "header", f"transfer syntax {uid.UID(shown(syntax)).name} ({shown(syntax)}) is not supported"
        )


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


def spacing_of(dataset: Dataset) -> tuple[float, ...]:
    """(row, column) in millimetres, empty where the header gives none that can be trusted."""
    # The detector plane comes first: PixelSpacing of a projection may be calibrated to any plane, or be [0, 0].
    for name in ("ImagerPixelSpacing", "PixelSpacing"):
        values = numbers(dataset.get(name))
        if len(values) == 2 and all(_SPACING_MM[0] <= value <= _SPACING_MM[1] for value in values):
            return tuple(values)
    return ()


def _view(dataset: Dataset) -> View:
    codes = dataset.get("ViewCodeSequence") or []
    meanings = [str(code.get("CodeMeaning", "")) for code in codes]
    named = (view_named(text) for text in [str(dataset.get("ViewPosition") or ""), *meanings])
    return next((view for view in named if view), "unknown")
