"""Radiographs as DICOM bytes, in the senses, depths and codings that equipment writes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image as PillowImage
from pydicom import dcmwrite, uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

# What pydicom does not write. Predictor 1 is what JPEGLosslessSV1 asks for, and 6 is another one.
_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    uid.JPEGBaseline8Bit: lambda pixels: imagecodecs.jpeg8_encode(pixels, level=95),
    uid.JPEGExtended12Bit: lambda pixels: imagecodecs.jpeg8_encode(pixels, level=95, bitspersample=12),
    uid.JPEGLossless: lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=6),
    uid.JPEGLosslessSV1: lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1),
    uid.JPEGLSNearLossless: lambda pixels: imagecodecs.jpegls_encode(pixels, level=2),
    uid.JPEG2000: lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=90, codecformat="j2k", bitspersample=12),
    uid.HTJ2KLossless: lambda pixels: imagecodecs.htj2k_encode(pixels),
}


def ramp(bits: int = 12, shape: tuple[int, int] = (64, 96)) -> np.ndarray[Any, Any]:
    """A gradient that reaches both ends of the range of ``bits``."""
    return np.linspace(0, 2**bits - 1, shape[0] * shape[1]).round().astype(np.uint16).reshape(shape)


def dataset(pixels: np.ndarray[Any, Any], *, bits: int = 12, **attributes: Any) -> FileDataset:
    """A CR film of ``pixels``; ``attributes`` override or add header elements, None removes one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    film = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    film.SOPClassUID = meta.MediaStorageSOPClassUID
    film.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    film.PatientName, film.PatientID, film.PatientBirthDate = "Roe^Richard", "HOSP-4711", "19500101"
    film.AccessionNumber = "ACC-0815"
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.Rows, film.Columns = pixels.shape[-2:]
    film.BitsAllocated, film.BitsStored, film.HighBit = 8 * pixels.itemsize, bits, bits - 1
    film.PixelRepresentation = int(pixels.dtype.kind == "i")
    film.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        if value is None:
            delattr(film, name)
        else:
            setattr(film, name, value)
    return film


def encode(film: FileDataset, syntax: str | None = None) -> bytes:
    """``film`` as file bytes, compressed or in another byte order when ``syntax`` asks for it."""
    if syntax == uid.ExplicitVRBigEndian:
        film.PixelData = np.frombuffer(film.PixelData, "<u2").astype(">u2").tobytes()
        film["PixelData"].VR = "OW"
        film.file_meta.TransferSyntaxUID = syntax
    elif syntax in (uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, uid.ImplicitVRLittleEndian):
        film.file_meta.TransferSyntaxUID = syntax
    elif syntax in _ENCODERS:
        frame = _ENCODERS[syntax](film.pixel_array)
        film.PixelData = encapsulate([frame])
        film["PixelData"].VR = "OB"
        film["PixelData"].is_undefined_length = True
        film.file_meta.TransferSyntaxUID = syntax
    elif syntax:
        film.compress(syntax, generate_instance_uid=False)
    buffer = io.BytesIO()
    coding = uid.UID(film.file_meta.TransferSyntaxUID)
    options = {"implicit_vr": coding.is_implicit_VR, "little_endian": coding.is_little_endian}
    dcmwrite(buffer, film, enforce_file_format=True, **({} if coding.is_encapsulated else options))
    return buffer.getvalue()


def syntaxes() -> list[str]:
    """Every lossless coding of 16-bit values."""
    return [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLossless,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
        uid.HTJ2KLossless,
    ]


def lossy_syntaxes() -> list[str]:
    """Every coding that changes values."""
    return [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000]


def film_bytes(bits: int = 12, **attributes: Any) -> bytes:
    """The bytes of one uncompressed film of ``ramp(bits)``."""
    return encode(dataset(ramp(bits), bits=bits, **attributes))


def raster(pixels: np.ndarray[Any, Any], kind: str = "PNG", **options: Any) -> bytes:
    """``pixels`` as a PNG or JPEG file."""
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def lut(kind: str, *, first: int, values: list[int], bits: int) -> Dataset:
    """An item of a ModalityLUTSequence or VOILUTSequence."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(values), first, bits], values
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    if len(values) >= 2**15:  # more than a US element holds
        item.add_new("LUTData", "OW", np.array(values, "<u2").tobytes())
    item.LUTExplanation = f"{kind} of Dr Roe"
    if kind == "Modality":
        item.ModalityLUTType = "US"
    return item


def view_code(meaning: str) -> list[Dataset]:
    """A ViewCodeSequence of one item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99TEST", meaning
    return [item]
