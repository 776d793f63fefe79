"""NIfTI-1 and NIfTI-2 volumes, plain or gzipped. The header is believed only as far as the file bears it out."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from rayzero.errors import first_line
from rayzero.studies.errors import StudyFileError
from rayzero.studies.kinds import GZIP, nifti_version
from rayzero.studies.study import Image
from rayzero.studies.voxels import MAX_VOXELS, VolumeHeader, check_size, volume_image

_HEAD_BYTES = 544  # a NIfTI-2 header with its extension flag, the longest that is looked at
_MAX_OFFSET = 2**24  # header extensions end here at the latest
_MAX_TAIL = 2**20  # what may follow the voxels: padding
_MAX_BYTES = 4 * MAX_VOXELS
_CHUNK = 2**20
# Codes of xyzt_units: unknown (taken for mm, as readers do), metre, millimetre, micron.
_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI's world is RAS


def read_nifti(data: bytes, image_id: str, header: VolumeHeader | None = None) -> Image:
    """The volume in ``data``, with ``header`` in place of the orientation, spacing and scale that the file states.

    Raises StudyFileError for a file that is damaged, cut short, expands beyond what its header announces, states no
    orientation (and no ``header`` does), or contradicts itself.
    """
    zipped = data.startswith(GZIP)
    head = _inflate(data, _HEAD_BYTES) if zipped else data[:_HEAD_BYTES]
    version = nifti_version(head)
    if not version:
        raise StudyFileError("open", "the file is not NIfTI: the n+1 or n+2 mark is missing")
    try:
        kind: Any = Nifti1Header if version == 1 else Nifti2Header
        fields = kind(head[: 348 if version == 1 else 540], check=False)
        shape, dtype, offset = _layout(fields)
        own = _own_header(fields, trusted=header is None)
    except StudyFileError:
        raise
    except Exception as error:  # nibabel raises many types on damaged headers
        raise StudyFileError("header", f"the NIfTI header is damaged ({first_line(error)})") from error
    if header is not None and (own.slope, own.intercept) != (1.0, 0.0):
        reason = f"the file has a rescale slope of {own.slope:g} and intercept of {own.intercept:g} of its own"
        raise StudyFileError("header", f"{reason}; the table's would be applied twice. Is this a corrected copy?")
    count = int(np.prod(shape, dtype=np.int64))
    end = offset + count * dtype.itemsize
    body = _inflate(data, end + _MAX_TAIL + 1) if zipped else data
    if len(body) < end:
        raise StudyFileError("decode", f"the file is cut short: {len(body):,} of {end:,} bytes are there")
    if len(body) > end + _MAX_TAIL:
        raise StudyFileError("decode", f"the file goes on beyond the {end:,} bytes that its header announces")
    # The first index of NIfTI runs fastest.
    stored = np.frombuffer(body, dtype, count, offset).reshape(shape[::-1])
    return volume_image(image_id, stored, header or own, units_stated=False)


def _layout(fields: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape (i, j, k), number type and offset of the voxels."""
    shape = tuple(int(n) for n in fields.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    check_size(shape)
    dtype = fields.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise StudyFileError("header", f"the voxels are {dtype.name}; integers and floats of up to 64 bits are read")
    if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize > _MAX_BYTES:
        raise StudyFileError("header", f"the voxels take more than {_MAX_BYTES:,} bytes; store them as int16")
    start = float(fields["vox_offset"])
    if not len(fields.binaryblock) + 4 <= start <= _MAX_OFFSET or start != int(start):
        raise StudyFileError("header", f"the voxels are said to begin at byte {start:g}, outside any NIfTI file")
    return shape, dtype, int(start)


def _own_header(fields: Any, *, trusted: bool) -> VolumeHeader:
    """What the file says of itself; of an untrusted one the scale alone counts."""
    slope, intercept = fields.get_slope_inter()
    scale = {"slope": 1.0 if slope is None else float(slope), "intercept": float(intercept or 0.0)}
    if not trusted:
        return VolumeHeader(axes=(), spacing_mm=(1.0, 1.0, 1.0), **scale)
    if int(fields["sform_code"]) <= 0 and int(fields["qform_code"]) <= 0:
        raise StudyFileError("header", "the file states no orientation: its sform and qform codes are 0")
    unit = _UNIT_MM.get(int(fields["xyzt_units"]) & 7)
    if unit is None:
        raise StudyFileError("header", f"the unit of length has the unknown code {int(fields['xyzt_units']) & 7}")
    axes = (_LPS @ np.asarray(fields.get_best_affine(), dtype=np.float64)[:3, :3]).T[::-1] * unit
    lengths = np.linalg.norm(axes, axis=1)
    zooms = np.asarray(fields.get_zooms()[:3], dtype=np.float64)[::-1] * unit
    if not np.allclose(lengths, zooms, rtol=0.02, atol=1e-6):
        found = " x ".join(f"{v:g}" for v in lengths), " x ".join(f"{v:g}" for v in zooms)
        raise StudyFileError("header", f"the affine says {found[0]} mm a voxel, pixdim says {found[1]} mm")
    z, y, x = (float(v) for v in lengths)
    return VolumeHeader(axes=tuple(tuple(float(v) for v in row) for row in axes), spacing_mm=(z, y, x), **scale)


def _inflate(data: bytes, limit: int) -> bytes | bytearray:
    """The first ``limit`` bytes of a gzip file of one or more members; all of it when it holds less.

    Nothing beyond the limit is expanded. Raises StudyFileError when it is damaged or ends early.
    """
    out = bytearray()
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    view, position = memoryview(data), 0
    rest: bytes = b""
    try:
        while len(out) < limit:
            if not rest:
                rest = bytes(view[position : position + _CHUNK])
                position += len(rest)
                if not rest:
                    break
            out += inflater.decompress(rest, limit - len(out))
            rest = inflater.unconsumed_tail
            if inflater.eof:
                rest = inflater.unused_data.lstrip(b"\0")  # padding may follow a member
                if rest and not GZIP.startswith(rest[:2]):
                    raise StudyFileError("decode", "bytes that are not gzip follow the compressed volume")
                inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    except zlib.error as error:
        raise StudyFileError("decode", f"the gzip file is damaged ({error})") from None
    return out
