"""A phantom corpus on disk: DICOM films, CT as DICOM and NIfTI, reports and the tables of ground truth."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np

from .dicom import write_ct_series, write_film
from .films import Film, render_films
from .patient import Patient, Split, Study, sample_patient
from .report import region_phrase, write_report
from .solids import Bools
from .vocabulary import FINDINGS
from .volume import CtVolume, render_ct

# nibabel is not typed.
_NiftiImage: Any = nibabel.Nifti1Image
CtFormat = Literal["none", "dicom", "nifti", "both"]
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class StudyRecord:
    """One row of ``studies.csv`` with its row of ``labels.csv`` and its lines of ``regions.jsonl``; plain data."""

    study_id: str
    patient_id: str
    split: Split
    study_time: str
    prior_study_id: str
    files: list[str]
    labels: dict[str, int]
    regions: list[dict[str, Any]]


def write_patient(
    root: Path | str,
    seed: int,
    index: int,
    split: Split,
    *,
    film_size: int = 512,
    ct: CtFormat = "none",
    ct_spacing: float = 3.0,
    films: bool = True,
) -> list[StudyRecord]:
    """Write the studies of one patient below ``root`` and return their records, oldest first.

    Independent of every other patient, so a caller may spread patients over processes and pass all the records
    to ``finish_corpus``. ``film_size`` is in pixels, ``ct_spacing`` in mm; ``films=False`` leaves the films out.
    """
    patient = sample_patient(seed, index, split)
    return [_write_study(Path(root), patient, study, film_size, ct, ct_spacing, films) for study in patient.studies]


def finish_corpus(root: Path | str, records: Iterable[StudyRecord]) -> None:
    """Write ``studies.csv``, ``labels.csv`` and ``regions.jsonl`` from the records of all patients, in id order."""
    root = Path(root)
    rows = sorted(records, key=lambda record: record.study_id)
    with open(root / "studies.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["study_id", "patient_id", "split", "study_time", "prior_study_id", "files"])
        writer.writerows(
            [r.study_id, r.patient_id, r.split, r.study_time, r.prior_study_id, ";".join(r.files)] for r in rows
        )
    with open(root / "labels.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["study_id", *FINDINGS])
        writer.writerows([r.study_id, *(r.labels[name] for name in FINDINGS)] for r in rows)
    with open(root / "regions.jsonl", "w", encoding="utf-8") as handle:
        for record in rows:
            handle.writelines(json.dumps(region) + "\n" for region in record.regions)


def write_corpus(
    root: Path | str,
    *,
    num_patients: int,
    seed: int,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    film_size: int = 512,
    ct: CtFormat = "none",
    ct_spacing: float = 3.0,
    films: bool = True,
) -> list[StudyRecord]:
    """Write a whole corpus in this process. ``fractions`` are the shares of train, validation and test patients."""
    records: list[StudyRecord] = []
    Path(root).mkdir(parents=True, exist_ok=True)
    for index, split in enumerate(patient_splits(num_patients, fractions)):
        records += write_patient(
            root, seed, index, split, film_size=film_size, ct=ct, ct_spacing=ct_spacing, films=films
        )
    finish_corpus(root, records)
    return records


def patient_splits(num_patients: int, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)) -> list[Split]:
    """The split of each patient index: first train, then validation, then test, rounded to whole patients."""
    bounds = np.rint(np.cumsum(fractions) / sum(fractions) * num_patients).astype(int)
    counts = np.diff(bounds, prepend=0)
    return [split for split, count in zip(_SPLITS, counts, strict=True) for _ in range(count)]


def encode_runs(mask: Bools) -> dict[str, list[int]]:
    """Row-major run lengths of a mask: ``size`` its shape, ``counts`` alternate zeros and ones, zeros first."""
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def decode_runs(runs: dict[str, list[int]]) -> Bools:
    """The boolean mask that ``encode_runs`` encoded."""
    counts = runs["counts"]
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(runs["size"])


def _write_study(
    root: Path, patient: Patient, study: Study, film_size: int, ct: CtFormat, ct_spacing: float, films: bool
) -> StudyRecord:
    folder = root / "files" / study.patient_id / study.study_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.txt").write_text(write_report(study), encoding="utf-8")
    regions: list[dict[str, Any]] = []
    names: list[str] = []
    if films:
        rendered = render_films(study, film_size)
        pairs: list[tuple[str, str, Film]] = [("pa", "frontal", rendered.pa), ("lateral", "lateral", rendered.lateral)]
        for number, (name, view, film) in enumerate(pairs):
            path = folder / f"{name}.dcm"
            names.append(path.name)
            write_film(path, patient, study, film, view, number)
            where = path.relative_to(root).as_posix()
            regions += [_region(study, where, view, r.finding, r.mask, list(r.box)) for r in film.regions]
    if ct != "none":
        regions += _write_ct(root, folder, patient, study, ct, ct_spacing)
        names += {"dicom": ["ct/"], "nifti": ["ct.nii.gz"], "both": ["ct/", "ct.nii.gz"]}[ct]
    prior = study.prior.study_id if study.prior else ""
    return StudyRecord(
        study.study_id, study.patient_id, study.split, study.time.isoformat(), prior, names, study.labels, regions
    )


def _region(study: Study, where: str, view: str, finding: int, mask: Bools, box: list[int]) -> dict[str, Any]:
    named = study.findings[finding]
    return {
        "study_id": study.study_id,
        "file": where,
        "view": view,
        "finding": named.name,
        "phrase": region_phrase(study, named),
        "box": box,
        "rle": encode_runs(mask),
    }


def _write_ct(
    root: Path, folder: Path, patient: Patient, study: Study, ct: CtFormat, spacing: float
) -> list[dict[str, Any]]:
    volume = render_ct(study, spacing)
    paths = []
    if ct in {"dicom", "both"}:
        write_ct_series(folder / "ct", patient, study, volume)
        paths.append(folder / "ct")
    if ct in {"nifti", "both"}:
        write_nifti(folder / "ct.nii.gz", volume)
        paths.append(folder / "ct.nii.gz")
    regions = []
    for path in paths:
        for owner, mask in volume.masks.items():
            z, y, x = (np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {k}))) for k in range(3))
            box = [int(e) for e in (x[0], y[0], z[0], x[-1] + 1, y[-1] + 1, z[-1] + 1)]
            regions.append(_region(study, path.relative_to(root).as_posix(), "volume", owner, mask, box))
    return regions


def write_nifti(path: Path, volume: CtVolume) -> None:
    """Write a volume as int16 NIfTI-1 in HU with a scanner-space RAS affine; array order (column, row, slice)."""
    image: Any = _NiftiImage(np.ascontiguousarray(volume.hu.transpose(2, 1, 0)), volume.affine)
    image.set_qform(volume.affine, code=1)
    image.set_sform(volume.affine, code=1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
