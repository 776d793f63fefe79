"""The corpus on disk: DICOM and NIfTI read back exactly, tables agree, and any process may write any patient."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom import uid

from rayzero.phantom import dicom as phantom_dicom
from rayzero.phantom import files, finish_corpus, render_ct, render_films, sample_patient, write_corpus, write_patient
from rayzero.phantom.contact_sheet import example_study

SIZE = 128


@pytest.mark.parametrize("syntax", [None, uid.RLELossless, uid.JPEG2000Lossless])
def test_films_read_back_bit_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: uid.UID | None) -> None:
    monkeypatch.setattr(phantom_dicom, "_syntax", lambda rng: syntax)
    seen = set()
    for index in range(6):
        patient = sample_patient(2, index, "test")
        study = patient.studies[0]
        film = render_films(study, SIZE).pa
        phantom_dicom.write_film(tmp_path / "pa.dcm", patient, study, film, "frontal", 0)
        ds = pydicom.dcmread(tmp_path / "pa.dcm")
        assert ds.file_meta.TransferSyntaxUID == (syntax or uid.ExplicitVRLittleEndian)
        top = 2**ds.BitsStored - 1
        expected = np.rint(film.pixels * top).astype(np.uint16)
        values = ds.pixel_array
        np.testing.assert_array_equal(
            top - values if ds.PhotometricInterpretation == "MONOCHROME1" else values, expected
        )
        assert ds.ViewPosition == "PA"
        assert ds.PatientID == patient.patient_id
        seen.add((ds.SOPClassUID, ds.PhotometricInterpretation, ds.BitsStored))
    assert {s[1] for s in seen} == {"MONOCHROME1", "MONOCHROME2"}
    assert len({s[0] for s in seen}) == 2


def test_ct_series_and_nifti_hold_the_same_volume_in_the_same_place(tmp_path: Path) -> None:
    study = example_study("lung mass", seed=3)
    patient = sample_patient(3, 1, "test")
    volume = render_ct(study, 6.0)
    phantom_dicom.write_ct_series(tmp_path / "ct", patient, study, volume)
    files.write_nifti(tmp_path / "ct.nii.gz", volume)
    slices = sorted((pydicom.dcmread(p) for p in (tmp_path / "ct").iterdir()), key=lambda d: d.ImagePositionPatient[2])
    image = nibabel.load(tmp_path / "ct.nii.gz")
    data = np.asarray(image.dataobj)
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    for k in (0, len(slices) // 2, len(slices) - 1):
        ds = slices[k]
        hu = ds.pixel_array.astype(int) * int(ds.RescaleSlope) + int(ds.RescaleIntercept)
        np.testing.assert_array_equal(hu, volume.hu[k])
        np.testing.assert_array_equal(hu, data[:, :, k].T)
        row, col = 7, 11
        x, y, z = (float(v) for v in ds.ImagePositionPatient)
        here = np.array([x + col * ds.PixelSpacing[1], y + row * ds.PixelSpacing[0], z])
        there = (image.affine @ [col, row, k, 1])[:3]
        np.testing.assert_allclose(there, here * [-1, -1, 1], atol=1e-3)


def test_a_corpus_has_consistent_tables_and_does_not_depend_on_order(tmp_path: Path) -> None:
    records = write_corpus(tmp_path / "a", num_patients=6, seed=4, film_size=SIZE)
    splits = files.patient_splits(6)
    assert splits.count("train") == 4
    assert splits.count("validation") == 1
    backwards = []
    for index in reversed(range(6)):
        backwards += write_patient(tmp_path / "b", 4, index, splits[index], film_size=SIZE)
    finish_corpus(tmp_path / "b", backwards)
    names = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    with open(tmp_path / "a" / "studies.csv", newline="") as handle:
        studies = list(csv.DictReader(handle))
    ids = {row["study_id"] for row in studies}
    assert len(ids) == len(records)
    assert all(row["prior_study_id"] in ids | {""} for row in studies)
    for line in (tmp_path / "a" / "regions.jsonl").read_text().splitlines():
        region = json.loads(line)
        ds = pydicom.dcmread(tmp_path / "a" / region["file"], stop_before_pixels=True)
        mask = files.decode_runs(region["rle"])
        assert mask.shape == (ds.Rows, ds.Columns)
        assert region["study_id"] in ids
        x0, y0, x1, y1 = region["box"]
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0].any()
        assert mask[:, x1 - 1].any()


def test_run_lengths_round_trip() -> None:
    rng = np.random.default_rng(0)
    for mask in (rng.random((7, 9)) > 0.5, np.zeros((3, 4), bool), np.ones((3, 4), bool), rng.random((3, 4, 5)) > 0.3):
        runs = files.encode_runs(mask)
        assert sum(runs["counts"]) == mask.size
        np.testing.assert_array_equal(files.decode_runs(runs), mask)
