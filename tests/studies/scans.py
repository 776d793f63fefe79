"""CT volumes as file bytes: NIfTI, DICOM series and npz, with headers that tests bend."""

from __future__ import annotations

import gzip
import io
import zipfile
from typing import Any

import nibabel
import numpy as np
from pydicom import dcmwrite, uid
from pydicom.dataset import FileDataset, FileMetaDataset

Array = np.ndarray[Any, Any]

SHAPE = (6, 10, 8)  # Z, Y, X
SPACING = (2.5, 0.75, 0.5)
# From (i, j, k) = (x, y, z) of the lake's axes to NIfTI's RAS: x and y run to the left and the back.
AFFINE = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])


def chest(shape: tuple[int, ...] = SHAPE) -> Array:
    """int16 HU (Z, Y, X), every voxel its own value, air and soft tissue among them."""
    return np.linspace(-1024, 1200, int(np.prod(shape))).round().astype(np.int16).reshape(shape)


def nifti_bytes(
    hu: Array, affine: Array = AFFINE, *, zipped: bool = True, version: int = 1, units: str = "mm", **fields: Any
) -> bytes:
    """``hu`` (Z, Y, X) as a NIfTI file; ``fields`` overwrite header fields, whatever they then say."""
    kind: Any = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(np.ascontiguousarray(hu.transpose(2, 1, 0)), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units(units)
    data = bytearray(image.to_bytes())
    header = kind.header_class(bytes(data[: image.header.sizeof_hdr]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[: image.header.sizeof_hdr] = header.binaryblock
    return gzip.compress(bytes(data), 1) if zipped else bytes(data)


def slice_dataset(hu: Array, k: int, **attributes: Any) -> FileDataset:
    """Slice ``k`` of ``hu`` (Z, Y, X) as a CT file of one series; ``attributes`` override, None removes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID, ds.InstanceNumber = "1.2.3", 1000 - k
    ds.PatientName = "Roe^Richard"
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [-3.0, -7.0, 100 + k * SPACING[0]]
    ds.PixelSpacing, ds.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = (hu[k].astype(np.int32) + 1024).astype("<u2").tobytes()
    for name, value in attributes.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return ds


def slice_bytes(hu: Array, k: int, **attributes: Any) -> bytes:
    """The bytes of ``slice_dataset``."""
    buffer = io.BytesIO()
    dcmwrite(buffer, slice_dataset(hu, k, **attributes), enforce_file_format=True)
    return buffer.getvalue()


def series(hu: Array, **attributes: Any) -> dict[str, bytes]:
    """All slices of ``hu`` by file name; the names are in no order of place."""
    order = np.random.default_rng(0).permutation(len(hu))
    return {f"{n:03d}.dcm": slice_bytes(hu, int(k), **attributes) for n, k in enumerate(order)}


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive of ``files``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npz_bytes(**arrays: Array) -> bytes:
    """A compressed ``.npz`` of ``arrays``."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
