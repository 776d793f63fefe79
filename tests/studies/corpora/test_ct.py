"""CT corpora on miniature trees of the published layout. Each trap of the datasets spec, section 10, has its test."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayzero.phantom import render_ct, sample_patient, write_corpus
from rayzero.studies.corpora import StudyRef, corpus, load, unique
from rayzero.studies.corpora.ct_rate import LABELS
from rayzero.studies.corpora.rad_chestct import CT_RATE_CLASSES, ct_rate_labels
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Study
from tests.studies.scans import SHAPE, SPACING, chest, nifti_bytes, npz_bytes

STORED = chest() + np.int16(1024)
ORIENTATION = "['1', '0', '0', '0', '1', '0']"


def _write(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _refs(name: str, root: Path) -> tuple[dict[str, StudyRef], list[Quarantined]]:
    items = list(unique(corpus(name).studies(str(root))))
    refs = {item.study_id: item for item in items if isinstance(item, StudyRef)}
    return refs, [item for item in items if isinstance(item, Quarantined)]


def _study(name: str, root: Path, study_id: str) -> Study:
    study, lost = load(_refs(name, root)[0][study_id], str(root))
    assert lost == []
    assert study is not None
    return study


@pytest.fixture
def ct_rate(tmp_path: Path) -> Path:
    """Two reconstructions of a validation scan and one training scan, original and corrected files."""
    volumes = {"valid": ["valid_1_a_1", "valid_1_a_2"], "train": ["train_7_b_1"]}
    long = {"valid": "validation", "train": "train"}
    for split, names in volumes.items():
        for name in names:
            scan = name.rpartition("_")[0]
            place = f"{scan.rpartition('_')[0]}/{scan}/{name}.nii.gz"
            for folder, data in (
                # A default header: identity affine without codes, values as stored by the scanner.
                (split, nifti_bytes(STORED, np.eye(4), sform_code=0, qform_code=0)),
                (f"{split}_fixed", nifti_bytes(chest())),
            ):
                path = tmp_path / "dataset" / folder / place
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        files = [f"{name}.nii.gz" for name in names]
        report = {
            "ClinicalInformation_EN": "Not given.",
            "Technique_EN": "Non-contrast images.",
            "Findings_EN": "Trachea, main bronchi are open.\nNo pleural effusion.",
            "Impressions_EN": "Cardiomegaly.",
        }
        _write(
            tmp_path / f"dataset/radiology_text_reports/{long[split]}_reports.csv",
            [{"VolumeName": file, **report} for file in files],
        )
        labels = {label: int(label == "Cardiomegaly") for label in LABELS}
        _write(
            tmp_path / f"dataset/multi_abnormality_labels/{split}_predicted_labels.csv",
            [{"VolumeName": file, **labels} for file in files],
        )
        header = {
            "Manufacturer": "X",
            "RescaleSlope": 1.0,
            "RescaleIntercept": -1024,
            "XYSpacing": f"[{SPACING[2]}, {SPACING[1]}]",
            "ZSpacing": SPACING[0],
            "ImagePositionPatient": "[-10.5, -20.25, 100]",
            "ImageOrientationPatient": ORIENTATION,
        }
        _write(
            tmp_path / f"dataset/metadata/dataset_metadata_{long[split]}_metadata.csv",
            [{"VolumeName": file, **header} for file in files],
        )
    return tmp_path


@pytest.mark.parametrize("name", ["ct-rate", "ct-rate-fixed"])
def test_trap_11_ct_rate_raw_files_take_the_table_and_fixed_ones_their_own_header(ct_rate: Path, name: str) -> None:
    study = _study(name, ct_rate, "valid_1_a")
    for image in study.images:
        np.testing.assert_array_equal(image.array(), chest())
        assert image.spacing_mm == pytest.approx(SPACING)
        assert image.view == "volume"
    assert (study.patient_id, study.split) == ("valid_1", "test")
    assert study.report.findings == "Trachea, main bronchi are open.\nNo pleural effusion."
    assert study.report.impression == "Cardiomegaly."
    assert "Not given" not in study.report.text
    assert [s.text for s in study.sentences] == ["There is no pleural effusion", "There is cardiomegaly"]


def test_trap_11_rescaling_a_corrected_file_again_is_refused(ct_rate: Path) -> None:
    """A corrected copy lies where the original belongs: the table's intercept would corrupt every value."""
    body = np.full((20, 20, 20), 40, np.int16)
    body[:, :6] = -900
    path = ct_rate / "dataset/train/train_7/train_7_b/train_7_b_1.nii.gz"
    path.write_bytes(nifti_bytes(body))
    study, lost = load(_refs("ct-rate", ct_rate)[0]["train_7_b"], str(ct_rate))
    assert study is None
    assert "not Hounsfield units of a chest" in lost[0].reason


def test_trap_11_reconstructions_of_one_scan_share_one_report_and_one_study(ct_rate: Path) -> None:
    """One study_id, one set of sentences, one patient: they cannot be counted as each other's negatives."""
    refs, refused = _refs("ct-rate-fixed", ct_rate)
    assert refused == []
    assert set(refs) == {"valid_1_a", "train_7_b"}
    assert [file.image_id for file in refs["valid_1_a"].files] == ["valid_1_a_1", "valid_1_a_2"]
    table = ct_rate / "dataset/radiology_text_reports/validation_reports.csv"
    table.write_text(table.read_text()[:-3] + "!\n")
    refs, refused = _refs("ct-rate-fixed", ct_rate)
    assert "valid_1_a" not in refs
    assert "different reports" in refused[0].reason


def test_trap_11_labels_are_silver_and_joined_by_volume_not_by_row(ct_rate: Path) -> None:
    """The label table in another order, and without one volume, still labels the right studies."""
    path = ct_rate / "dataset/multi_abnormality_labels/valid_predicted_labels.csv"
    rows = list(csv.DictReader(path.open()))
    _write(path, [{**rows[1]}, {**rows[0], "VolumeName": "valid_9_a_1.nii.gz", "Cardiomegaly": "0"}])
    study = _study("ct-rate-fixed", ct_rate, "valid_1_a")
    assert study.labels["Cardiomegaly"] == 1
    assert sum(study.labels.values()) == 1
    assert list(study.labels) == list(LABELS)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("XYSpacing", "[0.75]", "XYSpacing is"),
        ("XYSpacing", "0.75, 0.75", "XYSpacing is"),
        ("ImageOrientationPatient", "[1, 0, 0, 0, 1, x]", "ImageOrientationPatient is"),
        ("ZSpacing", "", "ZSpacing is"),
    ],
)
def test_trap_11_stringified_lists_are_parsed_whole_or_refused(
    ct_rate: Path, field: str, value: str, reason: str
) -> None:
    path = ct_rate / "dataset/metadata/dataset_metadata_train_metadata.csv"
    (row,) = csv.DictReader(path.open())
    _write(path, [{**row, field: value}])
    refs, refused = _refs("ct-rate", ct_rate)
    assert "train_7_b" not in refs
    assert reason in refused[0].reason


def test_trap_11_spacing_keeps_the_last_digit_of_the_list(ct_rate: Path) -> None:
    path = ct_rate / "dataset/metadata/dataset_metadata_train_metadata.csv"
    (row,) = csv.DictReader(path.open())
    _write(path, [{**row, "XYSpacing": "[0.703125, 0.703127]"}])
    assert _study("ct-rate", ct_rate, "train_7_b").images[0].spacing_mm[1:] == pytest.approx((0.703127, 0.703125))


def test_trap_11_a_reconstruction_without_geometry_leaves_the_others_of_its_scan(ct_rate: Path) -> None:
    path = ct_rate / "dataset/metadata/dataset_metadata_validation_metadata.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "valid_1_a_1" not in line) + "\n")
    refs, refused = _refs("ct-rate", ct_rate)
    assert [file.image_id for file in refs["valid_1_a"].files] == ["valid_1_a_2"]
    assert [q.study_id for q in refused] == ["valid_1_a"]
    assert "lacks valid_1_a_1" in refused[0].reason
    np.testing.assert_array_equal(_study("ct-rate", ct_rate, "valid_1_a").images[0].array(), chest())
    # With none left there is no study, and each is on record.
    path.write_text(lines[0] + "\n")
    refs, refused = _refs("ct-rate", ct_rate)
    assert "valid_1_a" not in refs
    assert [q.reason.split(";")[0] for q in refused] == [
        "the metadata table lacks valid_1_a_1",
        "the metadata table lacks valid_1_a_2",
    ]


def test_volumes_that_the_owners_list_as_not_of_the_chest_are_on_record(ct_rate: Path) -> None:
    (ct_rate / "dataset/metadata/no_chest_train.txt").write_text("dataset/train/train_7/train_7_b/train_7_b_1.nii.gz\n")
    refs, refused = _refs("ct-rate", ct_rate)
    assert set(refs) == {"valid_1_a"}
    assert "not of the chest" in refused[0].reason


def test_one_split_alone_reads_and_none_is_an_error(ct_rate: Path, tmp_path: Path) -> None:
    (ct_rate / "dataset/train").rename(tmp_path / "elsewhere")
    assert set(_refs("ct-rate", ct_rate)[0]) == {"valid_1_a"}
    with pytest.raises(CorpusError, match="root of CT-RATE"):
        _refs("ct-rate", tmp_path / "dataset")


_ABNORMALITIES = sorted({source for sources in CT_RATE_CLASSES.values() for source in sources} | {"cancer"})


@pytest.fixture
def rad(tmp_path: Path) -> Path:
    """Three released volumes, stored from head to feet, and a row of one that was not released."""
    (tmp_path / "images").mkdir()
    for name in ("trn00001", "val00002", "tst00003"):
        (tmp_path / f"images/{name}.npz").write_bytes(npz_bytes(ct=chest()[::-1]))
    orientations = {"trn00001": "1,0,0,0,1,0", "val00002": "1,0,0,0,1,0,0,0,1", "tst00003": "-1,0,0,0,-1,0"}
    rows = [
        {"VolumeAcc_DEID": f"{name}.npz", "NoteAcc_DEID": name, "orig_orientation": orientation, "orig_square": 1}
        for name, orientation in {**orientations, "trn99999": ""}.items()
    ]
    _write(tmp_path / "CT_Scan_Metadata_Complete_35747.csv", rows)
    for table, name in (("imgtrain", "trn00001"), ("imgvalid", "val00002"), ("imgtest", "tst00003")):
        cells = {f"{finding}*{place}": 0 for finding in _ABNORMALITIES for place in ("left_lung", "other_location")}
        cells |= {"nodulegr1cm*other_location": 1, "suture*left_lung": 1, "cancer*left_lung": 1}
        row = {"NoteAcc_DEID": name, **cells}
        _write(tmp_path / f"{table}_Abnormality_and_Location_Labels.csv", [row, {**row, "NoteAcc_DEID": "trn99999"}])
    return tmp_path


def test_trap_12_rad_chestct_runs_from_head_to_feet_at_a_fixed_spacing(rad: Path) -> None:
    refs, refused = _refs("rad-chestct", rad)
    assert refused == []
    assert {ref.study_id: ref.split for ref in refs.values()} == {
        "trn00001": "train", "val00002": "validation", "tst00003": "test",
    }  # fmt: skip
    for name in ("trn00001", "val00002"):
        (image,) = _study("rad-chestct", rad, name).images
        np.testing.assert_array_equal(image.array(), chest())
        assert image.spacing_mm == pytest.approx((0.8, 0.8, 0.8))
    # Lying on the face: rows and columns run the other way.
    (image,) = _study("rad-chestct", rad, "tst00003").images
    np.testing.assert_array_equal(image.array(), chest()[:, ::-1, ::-1])


def test_trap_12_star_joined_columns_become_labels_by_any_location(rad: Path) -> None:
    labels = _study("rad-chestct", rad, "trn00001").labels
    assert {name for name, value in labels.items() if value} == {"nodulegr1cm", "suture", "cancer"}
    assert list(labels) == _ABNORMALITIES


def test_trap_12_sixteen_classes_shared_with_ct_rate(rad: Path) -> None:
    merged = ct_rate_labels(_study("rad-chestct", rad, "trn00001").labels)
    assert len(merged) == 16
    assert {name for name, value in merged.items() if value} == {"Medical material", "Lung nodule"}
    assert set(LABELS) - set(merged) == {
        "Arterial wall calcification", "Coronary artery wall calcification", "Mosaic attenuation pattern",
    }  # fmt: skip
    assert set(merged) - set(LABELS) == {"Calcification"}


def test_rad_chestct_what_does_not_fit_is_on_record(rad: Path) -> None:
    (rad / "images/trn00004.npz").write_bytes(b"")
    path = rad / "CT_Scan_Metadata_Complete_35747.csv"
    path.write_text(path.read_text().replace('"1,0,0,0,1,0,0,0,1"', '"1,0"'))
    refs, refused = _refs("rad-chestct", rad)
    assert set(refs) == {"trn00001", "tst00003"}
    assert ["orig_orientation is '1,0'" in refused[0].reason, refused[1].study_id] == [True, "trn00004"]
    path = rad / "imgtest_Abnormality_and_Location_Labels.csv"
    path.write_text(path.read_text().replace("hernia*", "henria*"))
    with pytest.raises(CorpusError, match="hernia"):
        _refs("rad-chestct", rad)


@pytest.fixture
def inspect(tmp_path: Path) -> Path:
    """Three studies of two patients; one without a time; an id that the splits name twice."""
    (tmp_path / "CTPA").mkdir()
    for name in ("PE1", "PE2", "PE3"):
        (tmp_path / f"CTPA/{name}.nii.gz").write_bytes(nifti_bytes(chest()))
    tables: dict[str, list[dict[str, Any]]] = {
        "study_mapping": [
            {"impression_id": "1", "person_id": "7", "image_id": "PE1.nii.gz", "procedure_DATETIME": "2010-03-01"},
            {"impression_id": "2", "person_id": "7", "image_id": "PE2", "procedure_DATETIME": "2009-03-01 10:00:00"},
            {"impression_id": "3", "person_id": "8", "image_id": "PE3", "procedure_DATETIME": ""},
        ],
        "splits": [
            {"impression_id": "1", "split": "train"},
            {"impression_id": "1", "split": "train"},
            {"impression_id": "2", "split": "train"},
            {"impression_id": "3", "split": "valid"},
        ],
        "labels": [
            {"impression_id": str(k), "pe_positive_nlp": pe, "12_month_PH": ph, "tte_mortality": "1.0"}
            for k, pe, ph in ((1, "True", "Censored"), (2, "False", "True"), (3, "", "False"))
        ],
        "impressions": [
            {"impression_id": "1", "impressions": 'Acute embolism, "saddle" type.\tNo pleural effusion.'},
            {"impression_id": "2", "impressions": "No pleural effusion."},
        ],
    }  # fmt: skip
    for name, rows in tables.items():
        _write(tmp_path / f"{name}_20250611.tsv", rows, "\t")
    return tmp_path


def test_trap_18_inspect_is_tab_separated(inspect: Path) -> None:
    study = _study("inspect", inspect, "2")
    assert (study.patient_id, study.split) == ("7", "train")
    assert study.report.impression == "No pleural effusion."
    assert study.report.findings == ""
    assert [s.text for s in study.sentences] == ["There is no pleural effusion"]
    assert _study("inspect", inspect, "1").report.impression == 'Acute embolism, "saddle" type.\tNo pleural effusion.'


def test_trap_18_inspect_duplicate_ids_count_once_unless_they_disagree(inspect: Path) -> None:
    refs, refused = _refs("inspect", inspect)
    assert (set(refs), refused) == ({"1", "2", "3"}, [])
    assert refs["1"].prior_study_id == "2"
    assert (refs["3"].study_time, refs["3"].split) == (None, "validation")
    path = inspect / "splits_20250611.tsv"
    path.write_text(path.read_text() + "1\ttest\n")
    with pytest.raises(CorpusError, match="two splits"):
        _refs("inspect", inspect)


def test_trap_18_inspect_censored_is_no_label(inspect: Path) -> None:
    refs, _ = _refs("inspect", inspect)
    assert refs["1"].labels == {"pe_positive_nlp": 1}
    assert refs["2"].labels == {"pe_positive_nlp": 0, "12_month_PH": 1}
    assert refs["3"].labels == {"12_month_PH": 0}


def test_inspect_missing_ct_is_on_record(inspect: Path) -> None:
    (inspect / "CTPA/PE2.nii.gz").unlink()
    study, lost = load(_refs("inspect", inspect)[0]["2"], str(inspect))
    assert study is None
    assert lost[0].reason == "the file does not exist"


@pytest.fixture
def bimcv(tmp_path: Path) -> Path:
    """A session with two CT files and a radiograph, one with a radiograph alone, and one that no table lists."""
    for name in (
        "sub-S1/ses-E1/mod-rx/sub-S1_ses-E1_run-1_bp-chest_ct.nii.gz",
        "sub-S1/ses-E1/mod-rx/sub-S1_ses-E1_run-2_bp-chest_ct.nii.gz",
        "sub-S3/ses-E3/mod-ct/sub-S3_ses-E3_acq-1_run-1_bp-chest_ct.nii.gz",
        "derivatives/masks/sub-S1_ses-E1_run-1_bp-chest_ct.nii.gz",
        "sub-S1/ses-E1/mod-rx/sub-S1_ses-E1_run-3_bp-chest_vp-pa_cr.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(nifti_bytes(chest()))
    row = {"": 0, "Report": "neumoni bilateral .", "Labels": "['pneumonia', ' COVID 19']"}
    _write(
        tmp_path / "derivatives/labels/labels_covid19_posi.tsv",
        [{**row, "PatientID": "sub-S1", "ReportID": "ses-E1"}, {**row, "PatientID": "sub-S2", "ReportID": "ses-E2"}],
        "\t",
    )
    return tmp_path


def test_bimcv_sessions_are_studies_with_spanish_text_and_no_sentences(bimcv: Path) -> None:
    refs, refused = _refs("bimcv-covid19", bimcv)
    assert set(refs) == {"ses-E1"}
    assert [(q.study_id, q.reason) for q in refused] == [("ses-E3", "no table lists the session")]
    study = _study("bimcv-covid19", bimcv, "ses-E1")
    assert [image.shape for image in study.images] == [SHAPE, SHAPE]
    assert study.labels == {"COVID 19": 1, "pneumonia": 1}
    assert (study.report.text, study.sentences) == ("neumoni bilateral .", ())


@pytest.mark.parametrize("form", ["dicom", "nifti"])
def test_phantom_ct_studies_load_with_masks(tmp_path: Path, form: Any) -> None:
    records = write_corpus(tmp_path, num_patients=4, seed=11, ct=form, ct_spacing=6.0, films=False)
    refs, refused = _refs("phantom", tmp_path)
    assert refused == []
    marked = 0
    for record in records:
        study, lost = load(refs[record.study_id], str(tmp_path))
        assert study is not None
        assert lost == []
        (image,) = study.images
        assert (image.view, image.spacing_mm) == ("volume", (6.0, 6.0, 6.0))
        for region in study.regions:
            assert region.mask is not None
            assert region.box is None
            assert region.mask.size == image.shape
            marked += 1
    assert marked > 0
    patient = sample_patient(11, 0, "train")
    volume = render_ct(patient.studies[0], 6.0)
    first, _ = load(refs[patient.studies[0].study_id], str(tmp_path))
    assert first is not None
    np.testing.assert_array_equal(first.images[0].array(), volume.hu)
