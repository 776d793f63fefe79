"""Headers of the DICOM files behind an image: what an object derived from them has to repeat.

Unlike ``dicom.ATTRIBUTES``, these identify the patient: they go from a source into an object of the same study that
is handed back to whoever sent the source, and are neither kept nor logged.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

from rayzero.studies.dicom import parse
from rayzero.studies.errors import StudyFileError
from rayzero.studies.kinds import MAX_SLICES, is_litter

ATTRIBUTES = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName", "Modality", "Rows", "Columns",
    "NumberOfFrames", "PixelSpacing", "ImagerPixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
    "SliceThickness", "SpacingBetweenSlices", "PatientOrientation",
)  # fmt: skip

_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
_MAX_BYTES = 2**31


def read_headers(data: bytes) -> list[dict[str, Any]]:
    """The headers of a DICOM file, or of each file in a zip of one series, as DICOM JSON (PS3.18, annex F).

    Raises StudyFileError for another kind of file, or a header without the identity of its instance.
    """
    if not data.startswith(b"PK\x03\x04"):
        return [_read(data)]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [_read(member) for member in _members(archive)]
    except StudyFileError:
        raise
    except Exception as error:  # zipfile raises many types on damaged archives, and names the file in its message
        cause = type(error).__name__
        raise StudyFileError("open", f"the zip archive is damaged or encrypted ({cause})") from error


def _members(archive: zipfile.ZipFile) -> Iterator[bytes]:
    items = [item for item in archive.infolist() if not item.is_dir() and not is_litter(item.filename)]
    if len(items) > MAX_SLICES or sum(item.file_size for item in items) > _MAX_BYTES:
        raise StudyFileError("open", f"the zip archive holds more than {MAX_SLICES} files or {_MAX_BYTES:,} bytes")
    return (archive.read(item) for item in items)


def _read(data: bytes) -> dict[str, Any]:
    dataset = parse(data, ATTRIBUTES)
    missing = [name for name in _NEEDED if dataset.get(name) in (None, "")]
    if missing:
        raise StudyFileError("header", f"the header lacks {', '.join(missing)}; no object can refer to the file")
    kept: dict[str, Any] = {}
    for element in dataset:
        try:
            kept[f"{element.tag:08X}"] = element.to_json_dict(None, 0)
        except Exception as error:  # not its text, which may repeat the value
            reason = f"{element.keyword} does not hold what its value representation says ({type(error).__name__})"
            raise StudyFileError("header", f"{reason}; correct the file where it comes from") from error
    return kept
