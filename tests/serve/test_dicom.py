"""Results as DICOM: they open in pydicom and highdicom, and lie on their source."""

from __future__ import annotations

import base64
import io
import logging
import zipfile
from collections.abc import Iterator

import highdicom as hd
import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient

from rayzero.studies.sandbox import Sandbox
from rayzero.studies.study import Mask
from serve import maps
from serve.api import create_api
from serve.dicom_results import to_dicom
from serve.engine import Engine
from serve.examples import ExampleSet
from serve.schemas import DicomResult, MapFormat
from serve.service import Question, Service
from serve.settings import Limits
from serve.subjects import Source
from tests.serve.conftest import png
from tests.serve.leaving import drawn_for_who_left
from tests.serve.local import LocalClient
from tests.studies.films import dataset, encode, ramp
from tests.studies.scans import chest, series, zipped

PROMPTS = ["nodule", "pleural effusion"]


@pytest.fixture(scope="module")
def http(bundle_url: str, volume_bundle_url: str, reader: Sandbox) -> Iterator[TestClient]:
    urls = {"films": bundle_url, "ct": volume_bundle_url}
    models = [LocalClient(Engine.load(name, url, "cpu", cached_prompts=8)) for name, url in urls.items()]
    service = Service(models, ExampleSet([]), Limits(), reader=reader)
    with TestClient(create_api(service, token=None), raise_server_exceptions=False) as client:
        yield client


def made(http: TestClient, file: bytes, **form: str) -> pydicom.FileDataset:
    response = http.post("/v1/dicom", files={"file": ("x", file)}, data={"prompts": PROMPTS, **form})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/dicom"
    return pydicom.dcmread(io.BytesIO(response.content))


def masks(http: TestClient, file: bytes, **form: str) -> list[np.ndarray]:
    answer = http.post("/v1/query", files={"file": file}, data={"prompts": PROMPTS, "maps": "mask", **form}).json()
    runs = [one["map"]["mask"] for one in answer["results"]]
    return [Mask(size=tuple(run["size"]), counts=tuple(run["counts"])).array() for run in runs]


def median(http: TestClient, file: bytes, model: str) -> str:
    """A threshold that parts the first finding's map."""
    answer = http.post(
        "/v1/query", files={"file": file}, data={"prompts": PROMPTS, "maps": "array", "model": model, "threshold": 0.5}
    ).json()
    grid = np.frombuffer(base64.b64decode(answer["results"][0]["map"]["values"]), "<f4")
    return str(float(1 / (1 + np.exp(-np.median(grid)))))


def test_a_segmentation_of_a_film_lies_on_it(http: TestClient, film: bytes) -> None:
    source = pydicom.dcmread(io.BytesIO(film), stop_before_pixels=True)
    level = median(http, film, "films")
    seg = hd.seg.Segmentation.from_dataset(made(http, film, threshold=level))
    assert (seg.StudyInstanceUID, seg.PatientID) == (source.StudyInstanceUID, source.PatientID)
    assert (seg.Rows, seg.Columns) == (source.Rows, source.Columns)
    assert [seg.get_segment_description(n).SegmentLabel for n in (1, 2)] == PROMPTS
    pixels = seg.get_pixels_by_source_instance([source.SOPInstanceUID])
    for number, mask in enumerate(masks(http, film, threshold=level)):
        np.testing.assert_array_equal(pixels[0, :, :, number].astype(bool), mask)
    assert pixels.any()


def test_a_segmentation_of_a_series_lies_on_each_slice(http: TestClient, ct_series: bytes) -> None:
    level = median(http, ct_series, "ct")
    seg = hd.seg.Segmentation.from_dataset(made(http, ct_series, model="ct", threshold=level))
    with zipfile.ZipFile(io.BytesIO(ct_series)) as archive:
        slices = [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    assert seg.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    slices.sort(key=lambda one: one.ImagePositionPatient[2])
    pixels = seg.get_pixels_by_source_instance(
        [one.SOPInstanceUID for one in slices], ignore_spatial_locations=False, assert_missing_frames_are_empty=True
    )
    found = masks(http, ct_series, model="ct", threshold=level)
    for number, mask in enumerate(found):
        # The phantom's slices lie on the lake's axes: rows to the back, columns to the left, stacked to the head.
        np.testing.assert_array_equal(pixels[..., number].astype(bool), mask)
    assert found[0].any()


def test_a_series_in_another_orientation_is_met_in_its_own(http: TestClient) -> None:
    # Columns run to the right and slices to the feet: the lake turns both, and the result turns back.
    hu = chest()
    files = {
        f"{k}.dcm": data
        for k, data in enumerate(
            series(
                hu,
                ImageOrientationPatient=[-1, 0, 0, 0, 1, 0],
                FrameOfReferenceUID="1.2.9",
                StudyInstanceUID="1.2.8",
                PixelSpacing=[20, 20],
            ).values()
        )
    }
    data = zipped(files)
    level = median(http, data, "ct")
    seg = hd.seg.Segmentation.from_dataset(made(http, data, model="ct", threshold=level))
    slices = [pydicom.dcmread(io.BytesIO(one)) for one in files.values()]
    slices.sort(key=lambda one: one.ImagePositionPatient[2])
    pixels = seg.get_pixels_by_source_instance(
        [one.SOPInstanceUID for one in slices], assert_missing_frames_are_empty=True
    )
    mask = masks(http, data, model="ct", threshold=level)[0]
    np.testing.assert_array_equal(pixels[..., 0].astype(bool), mask[:, :, ::-1])
    assert (mask != mask[:, :, ::-1]).any()


def mapped(http: TestClient, file: bytes, finding: int, **form: str) -> tuple[dict[str, np.ndarray], pydicom.Dataset]:
    """The values of a parametric map by the instance that each frame lies on, and the map."""
    found = made(http, file, result="pm", **form)
    assert hd.pm.ParametricMap.from_dataset(found).SOPClassUID == found.SOPClassUID
    frames = found.pixel_array.reshape(-1, found.Rows, found.Columns)
    values = {}
    for frame, groups in zip(frames, found.PerFrameFunctionalGroupsSequence, strict=True):
        mapping = groups.RealWorldValueMappingSequence[0]
        if mapping.LUTExplanation == PROMPTS[finding]:
            source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            values[source] = frame * mapping.RealWorldValueSlope + mapping.RealWorldValueIntercept
    return values, found


def test_a_film_lies_nowhere_that_a_parametric_map_could(http: TestClient, film: bytes) -> None:
    response = http.post("/v1/dicom", files={"file": film}, data={"prompts": "nodule", "result": "pm"})
    assert (response.status_code, response.json()["type"]) == (415, "urn:rayzero:problem:unsupported-image")


def test_a_parametric_map_of_a_series_lies_on_each_slice(http: TestClient) -> None:
    # In the orientation of the test above.
    turned = {"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0], "FrameOfReferenceUID": "1.2.9", "PixelSpacing": [20, 20]}
    files = series(chest(), StudyInstanceUID="1.2.8", **turned)
    slices = [pydicom.dcmread(io.BytesIO(one)) for one in files.values()]
    slices.sort(key=lambda one: one.ImagePositionPatient[2])
    level = median(http, zipped(files), "ct")
    values, found = mapped(http, zipped(files), 0, model="ct")
    assert found.FrameOfReferenceUID == "1.2.9"
    assert len(values) == len(slices)
    mask = masks(http, zipped(files), model="ct", threshold=level)[0]
    _lies_on(np.stack([values[one.SOPInstanceUID] for one in slices]), mask[:, :, ::-1], float(level))
    positions = {
        groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID: list(
            groups.PlanePositionSequence[0].ImagePositionPatient
        )
        for groups in found.PerFrameFunctionalGroupsSequence
    }
    assert positions == {one.SOPInstanceUID: list(one.ImagePositionPatient) for one in slices}


def _lies_on(values: np.ndarray, mask: np.ndarray, level: float) -> None:
    """``values`` are above ``level`` where ``mask`` says so, but for what a step of the values rounds."""
    near = np.abs(values - level) <= 1 / 65535
    np.testing.assert_array_equal((values >= level) | near, mask | near)
    assert 0.01 < mask.mean() < 0.99
    assert near.mean() < 0.05


def test_a_report_holds_the_probabilities(http: TestClient, film: bytes) -> None:
    report = hd.sr.EnhancedSR.from_dataset(made(http, film, result="sr"))
    content = hd.sr.MeasurementReport.from_sequence([report])
    groups = content.get_image_measurement_groups()
    answer = http.post("/v1/query", files={"file": film}, data={"prompts": PROMPTS}).json()
    assert [group.finding_type.meaning for group in groups] == PROMPTS
    values = [float(group.get_measurements()[0].value) for group in groups]
    assert values == pytest.approx([one["probability"] for one in answer["results"]], rel=1e-5)
    for group, one in zip(groups, answer["results"], strict=True):
        item = group.get_measurements()[0][0]
        reach = {
            part.ConceptNameCodeSequence[0].CodeMeaning[0]: float(part.MeasuredValueSequence[0].NumericValue)
            for part in item.ContentSequence
            if part.RelationshipType == "HAS PROPERTIES"
        }
        low, high = one["probability_interval"]
        expected = {"+": high - one["probability"], "-": one["probability"] - low}
        assert reach == pytest.approx(expected, abs=1e-6)
    source = pydicom.dcmread(io.BytesIO(film), stop_before_pixels=True)
    assert report.StudyInstanceUID == source.StudyInstanceUID


@pytest.mark.parametrize("result", ["seg", "sr"])
def test_odd_headers_and_findings_are_repeated_and_told_to_nobody_else(
    http: TestClient,
    result: str,
    recwarn: pytest.WarningsRecorder,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    odd = {"PatientName": "ROE RICHARD", "PatientBirthDate": "1950-01-01", "StudyDate": "May", "StudyTime": "noon"}
    uids = {"StudyInstanceUID": "1.2.8", "SeriesInstanceUID": "1.2.9"}
    file = encode(dataset(ramp(), **odd, **uids, SpecificCharacterSet="ISO_IR 100"))
    recwarn.clear()
    caplog.clear()
    capfd.readouterr()
    asked = "Erguß \\ 胸水"
    response = http.post("/v1/dicom", files={"file": file}, data={"prompts": asked, "result": result})
    assert response.status_code == 200, response.text
    told = caplog.text + "".join(str(one.message) for one in recwarn) + "".join(capfd.readouterr())
    for value in (*odd.values(), asked):
        assert value not in told
    found = pydicom.dcmread(io.BytesIO(response.content))
    assert {name: str(found[name].value) for name in odd} == odd
    assert "Erguß / 胸水" in str(found)


def test_a_film_that_claims_a_place_in_the_patient_is_answered_without_it(http: TestClient) -> None:
    uids = {"StudyInstanceUID": "1.2.8", "SeriesInstanceUID": "1.2.9", "FrameOfReferenceUID": "1.2.7"}
    found = made(http, encode(dataset(ramp(), ImagePositionPatient=[0, 0, 0], **uids)))
    assert (found.StudyInstanceUID, "FrameOfReferenceUID" in found) == ("1.2.8", False)


@pytest.mark.parametrize("result", ["seg", "sr"])
def test_a_header_that_no_object_can_repeat_is_refused_before_a_model_runs(
    http: TestClient, monkeypatch: pytest.MonkeyPatch, result: str
) -> None:
    item = pydicom.Dataset()
    item.PatientID = "HOSP-4711"
    film = dataset(ramp(), StudyInstanceUID="1.2.8", SeriesInstanceUID="1.2.9")
    film.add_new("PatientID", "SQ", [item])
    monkeypatch.setattr(Service, "look", None)
    response = http.post("/v1/dicom", files={"file": encode(film)}, data={"prompts": "nodule", "result": result})
    assert (response.status_code, response.json()["type"]) == (422, "urn:rayzero:problem:unreadable-file")
    assert response.json()["detail"].startswith("PatientID in the header is of value representation SQ")
    assert "4711" not in response.text


@pytest.mark.parametrize("result", ["seg", "pm", "sr"])
def test_slices_whose_orientation_is_rounded_differently_are_one_series(http: TestClient, result: str) -> None:
    uids = {"StudyInstanceUID": "1.2.8", "FrameOfReferenceUID": "1.2.9", "PixelSpacing": [20, 20]}
    files = series(chest(), **uids)
    name = next(iter(files))
    odd = pydicom.dcmread(io.BytesIO(files[name]))
    odd.ImageOrientationPatient = [1, 0.0001, 0, 0, 1, 0]
    files[name] = encode(odd)
    assert made(http, zipped(files), model="ct", result=result).StudyInstanceUID == "1.2.8"


def test_what_is_not_dicom_has_no_study_to_join(http: TestClient) -> None:
    response = http.post("/v1/dicom", files={"file": png()}, data={"prompts": "nodule"})
    assert (response.status_code, response.json()["type"]) == (422, "urn:rayzero:problem:unreadable-file")


def test_a_fault_of_the_server_is_not_put_down_to_the_file(
    http: TestClient, film: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = "Roe^Jane"

    def broken(*_: object) -> np.ndarray:
        raise ValueError(name)

    monkeypatch.setattr(maps, "mask", broken)
    logging.getLogger("ray.serve").addHandler(caplog.handler)
    own = {"X-Request-ID": "0123456789abcdef"}
    try:
        response = http.post("/v1/dicom", files={"file": film}, data={"prompts": "nodule"}, headers=own)
    finally:
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert (response.status_code, response.json()["type"]) == (500, "urn:rayzero:problem:internal")
    told = next(message for message in caplog.messages if message.startswith("incident"))
    assert own["X-Request-ID"] in told
    assert "ValueError" in told
    assert "Roe" not in caplog.text


def test_an_object_that_nobody_waits_for_any_more_is_not_drawn(
    bundle_url: str, film: bytes, reader: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        model = LocalClient(Engine.load("films", bundle_url, "cpu", cached_prompts=8))
        service = Service([model], ExampleSet([]), Limits(), reader=reader)
        question = Question(("nodule", "mass", "pneumonia"), forms=frozenset({MapFormat.array}))
        await to_dicom(service, Source(data=film), question, DicomResult.seg)

    assert drawn_for_who_left(ask, maps, "mask", monkeypatch) == 1
