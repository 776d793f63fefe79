"""The radiographs of BIMCV-COVID19 in miniature; its CT is in ``test_ct``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from rayzero.studies.corpora import load
from rayzero.studies.corpora.bimcv import TABLES
from rayzero.studies.errors import CorpusError
from tests.studies.corpora.trees import loaded, refs_of, write_csv
from tests.studies.films import dataset, ramp, raster

NAME = "bimcv-covid19-cxr"
HEADER = "\t".join(
    ("", "PatientID", "ReportID", "Report", "Labels", "Localizations", "LabelsLocalizationsBySentence", "labelCUIS",
     "LocalizationsCUIS")
)  # fmt: skip


def film(root: Path, patient: str, session: str, entities: str, polarity: str = "MONOCHROME2") -> Path:
    """The PNG of a film of 12 bits with its JSON file."""
    path = root / patient / session / "mod-rx" / f"{patient}_{session}_{entities}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raster(ramp()))
    header = dataset(ramp(), PhotometricInterpretation=polarity, WindowCenter=2048, WindowWidth=4096)
    del header.PixelData
    path.with_suffix(".json").write_text(header.to_json())
    return path


def write_table(root: Path, name: str, sessions: dict[str, str]) -> None:
    """The label table ``name`` of {session: patient}."""
    lines = [
        f"{index}\t{patient}\t{session}\tneumoni bilateral .\t['pneumonia', ' COVID 19']\t[]\t[]\t[]\t[]"
        for index, (session, patient) in enumerate(sessions.items())
    ]
    write_csv(root / name, "\n".join([HEADER, *lines]), [])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    film(tmp_path, "sub-S1", "ses-E1", "run-1_bp-chest_vp-pa_cr", "MONOCHROME1")
    film(tmp_path, "sub-S1", "ses-E1", "run-2_bp-chest_vp-ll_dx")
    film(tmp_path, "sub-S2", "ses-E2", "acq-1_run-1_bp-chest_vp-ap_dx").with_suffix(".json").unlink()
    film(tmp_path, "sub-S2", "ses-E2", "acq-2_run-1_bp-chest_vp-ap_dx")
    film(tmp_path, "sub-S3", "ses-E3", "run-1_bp-chest_vp-ap_cr")
    film(tmp_path, "derivatives", "ses-E1", "run-1_bp-chest_vp-pa_cr")
    (tmp_path / "sub-S1/ses-E1/mod-rx/sub-S1_ses-E1_run-3_bp-chest_ct.nii.gz").write_bytes(b"a CT")
    write_table(tmp_path, TABLES[2], {"ses-E1": "sub-S1", "ses-E2": "sub-S2", "ses-E9": "sub-S1"})
    return tmp_path


def test_trap_03_stored_values_are_turned_to_air_dark_by_the_json_file_beside_them(root: Path) -> None:
    refs, refused = refs_of(NAME, root)
    assert set(refs) == {"ses-E1", "ses-E2"}
    assert [(q.study_id, q.stage, q.reason) for q in refused] == [("ses-E3", "table", "no table lists the session")]
    study = loaded(refs["ses-E1"], root)
    assert (study.patient_id, study.report.text, study.sentences) == ("sub-S1", "neumoni bilateral .", ())
    assert study.labels == {"COVID 19": 1, "pneumonia": 1}
    frontal, lateral = study.images
    assert (frontal.view, frontal.inverted, frontal.dtype, frontal.bits) == ("frontal", True, "uint16", 12)
    assert np.array_equal(frontal.array(), 4095 - ramp())
    assert (lateral.view, lateral.inverted) == ("lateral", False)
    assert np.array_equal(lateral.array(), ramp())
    assert [len(image.window) for image in study.images] == [2, 2]


def test_a_png_without_attributes_is_refused_and_the_view_of_one_acquisition_of_several_is_unknown(root: Path) -> None:
    refs, _ = refs_of(NAME, root)
    study, lost = load(refs["ses-E2"], str(root))
    assert study is not None
    assert [(image.image_id, image.view) for image in study.images] == [
        ("sub-S2_ses-E2_acq-2_run-1_bp-chest_vp-ap_dx", "unknown")
    ]
    assert [(q.stage, q.reason) for q in lost] == [
        (
            "header",
            "the JSON file of its DICOM attributes, which say its polarity, does not read (the file does not exist)",
        )
    ]


def test_the_latest_table_counts_and_a_session_of_another_patient_is_on_record(root: Path) -> None:
    write_table(root, TABLES[0], {"ses-E1": "sub-S9", "ses-E3": "sub-S3"})
    refs, refused = refs_of(NAME, root)
    assert set(refs) == {"ses-E2", "ses-E3"}
    assert [(q.study_id, q.reason) for q in refused] == [
        ("ses-E1", "PatientID is sub-S9, the files of the session belong to sub-S1")
    ]
    shutil.rmtree(root / "derivatives/labels")
    with pytest.raises(CorpusError, match=r"Labels_covid_123\.tsv, .*; is it the root of BIMCV-COVID19\?"):
        refs_of(NAME, root)
