"""CT volumes out of files, told apart by content: NIfTI, a zipped DICOM series, or a bare ``.npz``.

Every one becomes int16 Hounsfield units (Z, Y, X) on the lake's axes (``study.Image``). Sizes are checked before
anything is inflated or decoded.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

import numpy as np
from numpy.lib import format as npy

from rayzero.errors import first_line
from rayzero.studies.errors import StudyFileError
from rayzero.studies.kinds import MAX_SLICES, ZIP, is_litter, is_nifti
from rayzero.studies.nifti import read_nifti
from rayzero.studies.orientation import Array
from rayzero.studies.series import read_series
from rayzero.studies.study import Image
from rayzero.studies.voxels import MAX_VOXELS, VolumeHeader, check_size, volume_image

ACCEPTED = "NIfTI or a zip of one DICOM CT series"

_ARRAY = "ct.npy"
_MAX_BYTES = 4 * MAX_VOXELS


def read_volume(data: bytes, *, name: str = "", header: VolumeHeader | None = None, anonymous: bool = False) -> Image:
    """The volume in ``data``: NIfTI (gzipped or not), a zip of one DICOM CT series, or ``.npz`` with the array ``ct``.

    ``name`` becomes the ``image_id``. ``header`` stands in for what a NIfTI file says of its geometry and scale, and
    is needed for ``.npz``, which says nothing; a DICOM series speaks for itself. ``anonymous`` keeps the names of an
    archive's files, which may be a patient's, out of messages. Raises StudyFileError.
    """
    image_id = name or "volume"
    if is_nifti(data):
        return read_nifti(data, image_id, header)
    if not data.startswith(ZIP):
        raise StudyFileError("open", f"the file holds no volume; give {ACCEPTED}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read_archive(archive, image_id, header, anonymous)
    except StudyFileError:
        raise
    except Exception as error:  # zipfile and its decompressors raise many types on damaged archives
        # A library's own message names the file of the archive.
        cause = type(error).__name__ if anonymous else first_line(error)
        raise StudyFileError("open", f"the zip archive is damaged or encrypted ({cause})") from error


def _read_archive(archive: zipfile.ZipFile, image_id: str, header: VolumeHeader | None, anonymous: bool) -> Image:
    members = [item for item in archive.infolist() if not item.is_dir() and not is_litter(item.filename)]
    total = sum(item.file_size for item in members)
    if total > _MAX_BYTES:
        raise StudyFileError("open", f"the zip archive expands to {total:,} bytes; {_MAX_BYTES:,} are the limit")
    if len(members) > MAX_SLICES:
        raise StudyFileError("open", f"the zip archive holds {len(members)} files; a series has {MAX_SLICES} at most")
    if any(item.filename == _ARRAY for item in members):
        if header is None:
            reason = "an .npz states neither spacing nor orientation; ingest it with the corpus that it belongs to"
            raise StudyFileError("header", reason)
        return volume_image(image_id, _read_array(archive, header), header, units_stated=False)

    def slices() -> Iterator[tuple[str, bytes]]:
        for place, item in enumerate(members, 1):
            # zipfile never yields more than the stated size, and checks the sum at the end.
            yield f"file {place} of the series" if anonymous else item.filename[-80:], archive.read(item)

    return read_series(slices(), len(members), image_id)


def _read_array(archive: zipfile.ZipFile, header: VolumeHeader) -> Array:
    """The array ``ct``; its own header is checked before its values are read, and nothing is unpickled."""
    with archive.open(_ARRAY) as file:
        try:
            version = npy.read_magic(file)
            reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = reader(file)
        except ValueError as error:
            raise StudyFileError("header", f"the array ct is damaged ({first_line(error)})") from None
        check_size(shape)
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            raise StudyFileError("header", f"the array ct holds {dtype}; give integers or floats")
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size > _MAX_BYTES:
            raise StudyFileError("header", f"the array ct takes {size:,} bytes; {_MAX_BYTES:,} are the limit")
        data = file.read(size)
    if len(data) != size:
        raise StudyFileError("decode", f"the array ct is cut short: {len(data):,} of {size:,} bytes are there")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
