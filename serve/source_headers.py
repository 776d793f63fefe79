"""Headers of the files that a DICOM object is made of: checked before a model runs, and mended where nothing is lost.

What stands in them may name a patient: a refusal names the attribute and the kind of its value, never the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.valuerep import STANDARD_VR

from serve.images import Kind
from serve.pacs import UID, UID_CHARS
from serve.problems import Problem

Header = dict[str, Any]
"""One file's header as DICOM JSON (PS3.18, annex F): elements by tag, eight hexadecimal digits."""

IDENTITY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""What an object repeats of its source's patient and study (PS3.3, tables C.7-1 and C.7-3, type 2)."""

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_SIZE = ("Rows", "Columns")
_PLACE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
_FRAME = "FrameOfReferenceUID"
# The attributes of one patient, study and series: they are stated in each of its files.
_SHARED = ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "SeriesInstanceUID", _FRAME, *_SIZE)
# A projection lies nowhere in the patient (PS3.3, table A.2-1: no Image Plane module), whatever its header adds.
_NOT_OF_FILMS = (*_PLACE, _FRAME, "PositionReferenceIndicator", "SliceThickness", "SpacingBetweenSlices")
_LENGTHS = ("SliceThickness", "SpacingBetweenSlices")
# Written with one value, and of no use where they are not.
_TEXTS_TO_SPARE = ("Modality", "PositionReferenceIndicator")
# Of these, one may stand for another: their values are characters, whatever they are to mean.
_TEXT = {"AE", "AS", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UT"}
_A_UID = re.compile(UID)


def checked_headers(headers: Sequence[Header], kind: Kind) -> list[Header]:
    """Copies of ``headers``, of the one film or of all slices of a series, that an object can be made of.

    Dropped are what places a film in space, and a thickness or distance of slices that is no length: neither is needed.
    Raises Problem (422) for any other attribute that is missing, of another kind than PS3.6 says, or not the same in
    all slices.
    """
    mended = [_mended(header, kind) for header in headers]
    # One file alone is no series, as whoever reads its pixels tells better.
    placed = kind == "volume" and len(headers) > 1
    for header in mended:
        for name in _UIDS:
            _check_uid(header, name)
        for name in _SIZE:
            _check_numbers(header, name, 1, "US")
        if placed:
            _check_uid(header, _FRAME)
            for name, count in _PLACE.items():
                _check_numbers(header, name, count, "DS")
        for name in IDENTITY:
            _check_text(header, name)
    _check_together(mended)
    return mended


def _mended(header: Header, kind: Kind) -> Header:
    spare = set(_NOT_OF_FILMS) if kind != "volume" else set()
    spare |= {name for name in _LENGTHS if not _is_length(header, name)}
    spare |= {name for name in _TEXTS_TO_SPARE if not _is_text(header, name)}
    tags = {_tag(name) for name in spare}
    return {tag: element for tag, element in header.items() if tag not in tags}


def _check_uid(header: Header, name: str) -> None:
    values = _values(header, name)
    if not values or values[0] in (None, ""):
        raise _refusal(name, "is missing", "one UID")
    # A UID that PS3.5 would not have, a zero at the front of a component, still names its object.
    sound = len(values) == 1 and isinstance(values[0], str) and len(values[0]) <= UID_CHARS
    if not sound or not _A_UID.fullmatch(values[0]):
        raise _refusal(name, _told(header, name), f"one UID, digits and dots, at most {UID_CHARS} characters")


def _check_numbers(header: Header, name: str, count: int, kind: str) -> None:
    values = _values(header, name)
    wanted = f"{count} finite number{'s' if count > 1 else ''} ({kind})"
    if not values:
        raise _refusal(name, "is missing", wanted)
    if len(values) != count or not all(_is_finite(value) for value in values):
        raise _refusal(name, _told(header, name), wanted)
    if name not in ("ImagePositionPatient", "ImageOrientationPatient") and min(values) <= 0:
        raise _refusal(name, "is not above zero", wanted)


def _check_text(header: Header, name: str) -> None:
    if not _is_text(header, name):
        raise _refusal(name, _told(header, name), f"one text ({dictionary_VR(name)}), which may be empty")


def _check_together(headers: Sequence[Header]) -> None:
    """Refuse slices of several patients, studies, series, frames or sizes, and one that is there twice."""
    for name in _SHARED:
        if any(_filled(one, name) != _filled(headers[0], name) for one in headers[1:]):
            raise _refusal(name, "is not the same in all slices", "one value; send the slices of one series")
    if len({_values(one, "SOPInstanceUID")[0] for one in headers}) < len(headers):
        raise _refusal("SOPInstanceUID", "is the same in several slices", "another UID in each; send each slice once")


def _is_length(header: Header, name: str) -> bool:
    values = _values(header, name)
    return len(values) == 1 and _is_finite(values[0]) and bool(values[0] > 0)


def _is_text(header: Header, name: str) -> bool:
    """Whether an attribute is absent, empty, or one text of a kind that can be written as its own."""
    values = _values(header, name)
    found = header.get(_tag(name), {}).get("vr")
    if not values and found in (None, *_TEXT, "PN"):
        return "InlineBinary" not in header.get(_tag(name), {})
    if len(values) != 1:
        return False
    if found == "PN":
        return dictionary_VR(name) == "PN" and (values[0] is None or isinstance(values[0], dict))
    return found in _TEXT and (values[0] is None or isinstance(values[0], str))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _values(header: Header, name: str) -> list[Any]:
    values: list[Any] = header.get(_tag(name), {}).get("Value") or []
    return values


def _filled(header: Header, name: str) -> list[Any]:
    return [value for value in _values(header, name) if value not in (None, "")]


def _told(header: Header, name: str) -> str:
    """The kind of an attribute's value, in words that repeat nothing of it."""
    found = str(header[_tag(name)].get("vr", ""))
    # Two letters that a damaged file may have taken from anywhere.
    vr = found if found in STANDARD_VR else "?"
    values = _values(header, name)
    return f"is of value representation {vr} with {len(values)} value{'' if len(values) == 1 else 's'}"


def _tag(name: str) -> str:
    tag = tag_for_keyword(name)
    assert tag is not None
    return f"{tag:08X}"


def _refusal(name: str, found: str, wanted: str) -> Problem:
    detail = f"{name} in the header {found}. It has to be {wanted}: correct the file where it comes from."
    return Problem(422, "unreadable-file", detail, field="file")
