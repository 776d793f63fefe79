"""Headers that an object can be made of, and those it cannot: named by attribute and kind, never by value."""

from __future__ import annotations

import copy
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from serve.problems import Problem
from serve.source_headers import IDENTITY, checked_headers
from tests.studies.films import dataset, ramp
from tests.studies.scans import chest, slice_dataset

SECRET = "ROE RICHARD"


def json_of(header: Dataset) -> dict[str, Any]:
    kept = copy.deepcopy(header)
    del kept.PixelData
    found: dict[str, Any] = kept.to_json_dict()
    return found


def tag(name: str) -> str:
    number = pydicom.datadict.tag_for_keyword(name)
    assert number is not None
    return f"{number:08X}"


def film() -> dict[str, Any]:
    return json_of(dataset(ramp(), StudyInstanceUID="1.2.8", SeriesInstanceUID="1.2.9"))


def slices() -> list[dict[str, Any]]:
    hu = chest()
    uids = {"StudyInstanceUID": "1.2.8", "FrameOfReferenceUID": "1.2.9", "PatientID": "HOSP-4711"}
    return [json_of(slice_dataset(hu, k, **uids)) for k in range(len(hu))]


def refused(headers: list[dict[str, Any]], kind: Any, name: str) -> str:
    with pytest.raises(Problem) as caught:
        checked_headers(headers, kind)
    problem = caught.value
    assert (problem.status_code, problem.slug, problem.field) == (422, "unreadable-file", "file")
    assert problem.detail.startswith(f"{name} in the header ")
    for value in (SECRET, "4711", "Roe", "1.2.8"):
        assert value not in problem.detail
    return problem.detail


def test_sound_headers_pass_as_they_are() -> None:
    for kind, given in (("radiograph", [film()]), ("volume", slices())):
        assert checked_headers(given, kind) == given  # type: ignore[arg-type]


@pytest.mark.parametrize("name", IDENTITY)
@pytest.mark.parametrize(
    "element",
    [
        {"vr": "SQ", "Value": [{"00100020": {"vr": "LO", "Value": [SECRET]}}]},
        {"vr": "SQ"},
        {"vr": "LO", "Value": [SECRET, SECRET]},
        {"vr": "PN", "Value": [{"Alphabetic": SECRET}, {"Alphabetic": SECRET}]},
        {"vr": "DS", "Value": [4711.0]},
        {"vr": "OB", "InlineBinary": "Um9l"},
        {"vr": "Ro", "Value": [SECRET]},
    ],
    ids=["sequence", "empty sequence", "two texts", "two names", "number", "bytes", "unknown"],
)
def test_an_identity_that_is_not_one_text_is_refused(name: str, element: dict[str, Any]) -> None:
    refused([{**film(), tag(name): element}], "radiograph", name)


@pytest.mark.parametrize("name", IDENTITY)
@pytest.mark.parametrize("element", [None, {"vr": "SH"}, {"vr": "UT", "Value": ["x"]}, {"vr": "LO", "Value": [""]}])
def test_an_identity_that_is_absent_or_a_text_of_another_kind_passes(name: str, element: dict[str, Any] | None) -> None:
    header = film()
    header.pop(tag(name), None)
    if element is not None:
        header[tag(name)] = element
    assert checked_headers([header], "radiograph") == [header]


@pytest.mark.parametrize("name", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize(
    "element",
    [
        {},
        {"vr": "UI"},
        {"vr": "UI", "Value": [SECRET]},
        {"vr": "UI", "Value": ["1.2."]},
        {"vr": "UI", "Value": ["1." * 32 + "1"]},
        {"vr": "UI", "Value": ["1.2.8", "1.2.8"]},
        {"vr": "UL", "Value": [12]},
        {"vr": "SQ", "Value": [{}]},
    ],
    ids=["absent", "empty", "letters", "dot at the end", "65 characters", "two", "number", "sequence"],
)
def test_what_is_no_uid_is_refused(name: str, element: dict[str, Any]) -> None:
    refused([{**film(), tag(name): element}], "radiograph", name)


def test_a_uid_of_64_characters_or_with_leading_zeros_passes() -> None:
    for text in ("1." * 31 + "12", "1.02.3"):
        assert checked_headers([{**film(), tag("StudyInstanceUID"): {"vr": "UI", "Value": [text]}}], "radiograph")


@pytest.mark.parametrize(
    "name",
    ["FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"],
)
@pytest.mark.parametrize("element", [{}, {"vr": "DS"}, {"vr": "LO", "Value": [SECRET]}, {"vr": "SQ", "Value": [{}]}])
def test_a_slice_without_its_place_or_size_is_refused(name: str, element: dict[str, Any]) -> None:
    given = slices()
    given[3][tag(name)] = element
    refused(given, "volume", name)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ImagePositionPatient", [0.0, 1.0]),
        ("ImageOrientationPatient", [1.0, 0.0, 0.0, 0.0, 1.0, float("nan")]),
        ("PixelSpacing", [0.0, 1.0]),
        ("PixelSpacing", [None, 1.0]),
        ("Rows", [0]),
    ],
)
def test_numbers_that_place_nothing_are_refused(name: str, values: list[Any]) -> None:
    given = slices()
    given[3][tag(name)] = {"vr": "DS", "Value": values}
    refused(given, "volume", name)


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("StudyInstanceUID", {"vr": "UI", "Value": ["1.2.77"]}),
        ("SeriesInstanceUID", {"vr": "UI", "Value": ["1.2.77"]}),
        ("FrameOfReferenceUID", {"vr": "UI", "Value": ["1.2.77"]}),
        ("Rows", {"vr": "US", "Value": [77]}),
        ("Columns", {"vr": "US", "Value": [77]}),
        ("PatientID", {"vr": "LO", "Value": [SECRET]}),
        ("PatientName", {"vr": "PN", "Value": [{"Alphabetic": SECRET}]}),
        ("PatientBirthDate", {"vr": "DA", "Value": ["19500101"]}),
    ],
)
def test_slices_of_different_patients_studies_or_grids_are_refused(name: str, element: dict[str, Any]) -> None:
    given = slices()
    given[3][tag(name)] = element
    assert "is not the same in all slices" in refused(given, "volume", name)


def test_a_slice_that_is_there_twice_is_refused() -> None:
    given = slices()
    given[3][tag("SOPInstanceUID")] = given[2][tag("SOPInstanceUID")]
    assert "send each slice once" in refused(given, "volume", "SOPInstanceUID")


@pytest.mark.parametrize("element", [{"vr": "SQ", "Value": [{}]}, {"vr": "DS", "Value": [1.0]}])
@pytest.mark.parametrize(
    "name",
    ["FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
     "SpacingBetweenSlices", "PositionReferenceIndicator", "Modality"],
)  # fmt: skip
def test_what_a_film_needs_not_is_dropped(name: str, element: dict[str, Any]) -> None:
    header = film()
    header.pop(tag(name), None)
    assert checked_headers([{**header, tag(name): element}], "radiograph") == [header]


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), SECRET, None])
@pytest.mark.parametrize("name", ["SliceThickness", "SpacingBetweenSlices"])
def test_a_thickness_that_is_no_length_is_dropped(name: str, value: Any) -> None:
    given = slices()
    for header in given:
        header[tag(name)] = {"vr": "DS", "Value": [value]}
    assert all(tag(name) not in header for header in checked_headers(given, "volume"))
