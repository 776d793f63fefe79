"""PadChest in miniature, and its published table."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from rayzero.studies.corpora.padchest import TABLES, findings, parse_labels, tail
from rayzero.studies.corpora.tables import read_rows
from tests.studies.corpora.trees import loaded, real_file, refs_of, write_csv, write_image

HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
)


def row(number: int, study: str, patient: str, view: str, method: str, labels: str, **changes: object) -> list[object]:
    cells: dict[str, object] = dict.fromkeys(HEADER.split(","), "None")
    cells |= {"": number, "ImageID": f"{study}_{number}.png", "ImageDir": number, "StudyDate_DICOM": 20140915 + number}
    cells |= {"StudyID": study, "PatientID": patient, "Projection": view, "MethodLabel": method, "Labels": labels}
    cells |= {"Report": " sin hallazg patolog .", "labelCUIS": "['C0034069' 'C0742362']"}
    return list({**cells, **changes}.values())


def write(root: Path, rows: list[list[object]]) -> None:
    write_csv(root / TABLES[0], HEADER, rows)
    for cells in rows:
        write_image(root / str(cells[2]) / str(cells[1]), seed=int(str(cells[0])), bits=16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    same = {"StudyDate_DICOM": 20140916}
    write(
        tmp_path,
        [
            row(0, "s0", "p0", "PA", "Physician", "['normal']"),
            row(1, "s1", "p1", "AP_horizontal", "Physician", "[' cardiomegaly', 'unchanged']"),
            row(2, "s1", "p1", "L", "Physician", "['cardiomegaly', ' unchanged', '']", **same),
            row(3, "s3", "p3", "PA", "RNN_model", "['cardiomegaly', 'obesity']"),
            row(4, "s4", "p1", "PA", "RNN_model", "['normal']"),
            row(5, "s5", "p5", "COSTAL", "RNN_model", "nan"),
            row(6, "s6", "p0", "UNK", "Physician", "['exclude']"),
        ],
    )
    return tmp_path


def test_trap_07_labels_are_stripped_lists_and_the_odd_classes_stay(root: Path) -> None:
    refs, _ = refs_of("padchest", root)
    study = loaded(refs["s1"], root)
    assert study.labels == {"cardiomegaly": 1, "exclude": 0, "unchanged": 1}
    assert refs["s0"].labels == {"cardiomegaly": 0, "exclude": 0, "unchanged": 0}
    assert refs["s3"].labels == {"cardiomegaly": 1, "exclude": 0, "unchanged": 0}
    assert parse_labels("__import__('os').getcwd()") is None
    assert parse_labels("['a' 'b'") is None


def test_trap_07_laterals_belong_to_the_test_studies(root: Path) -> None:
    refs, _ = refs_of("padchest", root)
    assert refs["s1"].split == "test"
    assert [image.view for image in loaded(refs["s1"], root).images] == ["frontal", "lateral"]


def test_trap_07_unparsable_labels_are_on_record_and_the_study_kept(root: Path) -> None:
    refs, refused = refs_of("padchest", root)
    assert dict(refs["s5"].labels) == {}
    assert [(q.study_id, q.stage) for q in refused if q.stage == "labels"] == [("s5", "labels")]


def test_trap_03_sixteen_bit_png_does_not_saturate(root: Path) -> None:
    refs, _ = refs_of("padchest", root)
    image = loaded(refs["s0"], root).images[0]
    expected = np.random.default_rng(0).integers(0, 2**16, (32, 24))
    assert (image.dtype, image.bits) == ("uint16", 16)
    assert np.array_equal(image.array(), expected)


def test_studies_of_test_patients_do_not_train(root: Path) -> None:
    refs, refused = refs_of("padchest", root)
    assert "s4" not in refs
    assert [(q.study_id, q.stage) for q in refused if q.stage == "leakage"] == [("s4", "leakage")]
    assert {ref.split for name, ref in refs.items() if name in ("s3", "s5")} == {"train"}


def test_time_prior_and_report(root: Path) -> None:
    refs, _ = refs_of("padchest", root)
    assert refs["s1"].study_time == datetime(2014, 9, 16)
    assert refs["s6"].prior_study_id == "s0"
    study = loaded(refs["s0"], root)
    assert study.report.text == "sin hallazg patolog ."
    assert study.sentences == ()


def test_bad_rows_are_on_record(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            row(0, "s0", "p0", "PA", "Physician", "['normal']"),
            row(1, "s0", "p9", "PA", "Physician", "['normal']"),
            row(2, "s2", "p2", "oblique", "Physician", "['normal']"),
            row(3, "s3", "p3", "PA", "Robot", "['normal']"),
            row(4, "s4", "p4", "PA", "Physician", "['normal']", StudyDate_DICOM="None"),
        ],
    )
    refs, refused = refs_of("padchest", tmp_path)
    assert list(refs) == ["s0"]
    reasons = [q.reason for q in refused]
    for words, reason in zip(
        ("differs from others", "Projection is 'oblique'", "MethodLabel is 'Robot'", "is 'None'"), reasons, strict=True
    ):
        assert words in reason


def test_trap_07_the_published_table_has_192_classes_and_20_of_the_tail(tmp_path: Path) -> None:
    shutil.copy(real_file(TABLES[1]), tmp_path)
    rows = list(read_rows(str(tmp_path), TABLES[1], ("MethodLabel", "Labels"), optional=()))
    labels = [parse_labels(item["Labels"]) for item in rows]
    judged = [
        found or frozenset() for item, found in zip(rows, labels, strict=True) if item["MethodLabel"] == "Physician"
    ]
    assert (len(rows), len(judged), labels.count(None)) == (160_861, 39_053, 103)
    classes = findings(judged)
    assert len(classes) == 192
    assert {"unchanged", "exclude", "suboptimal study"} <= set(classes)
    rare = tail(judged)
    assert len(rare) == 20
    counts = {name: sum(name in found for found in judged) for name in rare}
    assert (counts["breast mass"], counts["azygoesophageal recess shift"], counts["empyema"]) == (1, 10, 4)


def test_the_published_table_makes_studies(tmp_path: Path) -> None:
    shutil.copy(real_file(TABLES[1]), tmp_path)
    refs, refused = refs_of("padchest", tmp_path)
    test = [ref for ref in refs.values() if ref.split == "test"]
    assert sum(len(ref.files) for ref in test) == 39_053
    assert len(test[0].labels) == 192
    stages = [q.stage for q in refused]
    # One study has images of two patients; 103 rows without labels.
    assert (stages.count("table"), len(refs) + stages.count("leakage")) == (1, 109_931)
    train = {ref.patient_id for ref in refs.values() if ref.split == "train"}
    assert not train & {ref.patient_id for ref in test}
