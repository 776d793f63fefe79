"""CT-RATE, chest CT with reports (datasets spec, 1.6; BrgSA spec, section 1).

::

    dataset/train/train_1/train_1_a/train_1_a_1.nii.gz        split_patient_scan_reconstruction; valid/ alike
    dataset/train_fixed/..., dataset/valid_fixed/...          corrected copies
    dataset/radiology_text_reports/{train_reports, validation_reports}.csv
    dataset/multi_abnormality_labels/{train, valid}_predicted_labels.csv
    dataset/metadata/{train_metadata, validation_metadata}.csv, no_chest_{train, valid}.txt (optional)

A scan is a study: its reconstructions share one report and one study_id, so they count as one in a contrastive
batch and in retrieval, and cannot be each other's negatives. ``valid`` enters as split test: every published figure
is measured on it. The labels are predictions from the report. ``ct-rate`` reads the original files, whose headers
are wrong, with geometry and scale of the metadata table; ``ct-rate-fixed`` reads the corrected files as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from rayzero.reports.layouts import CT_RATE_SECTIONS, ct_rate_report
from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.tables import Row, existing, one_of_files, read_rows, read_text
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Split
from rayzero.studies.voxels import VolumeHeader

LABELS = (
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule",
    "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip
_GEOMETRY = (
    "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing", "ImagePositionPatient", "ImageOrientationPatient",
)  # fmt: skip
_NAME = re.compile(r"((train|valid)_\d+)_([a-z]+)_(\d+)")
_SPLITS: dict[str, Split] = {"train": "train", "valid": "test"}
_TABLES = {"train": "train", "valid": "validation"}  # the tables of reports and metadata spell the split out


class CtRate:
    """Scans with one or more reconstructions, one report and 18 labels each."""

    def __init__(self, name: str, *, fixed: bool) -> None:
        self.name = name
        self._fixed = fixed

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        suffix = "_fixed" if self._fixed else ""
        folders = {split: f"dataset/{split}{suffix}" for split in _SPLITS}
        found = existing(root, list(folders.values()))
        if not found:
            raise CorpusError(f"{root} holds none of {', '.join(folders.values())}; is it the root of CT-RATE?")
        for split, folder in folders.items():
            if folder in found:
                yield from self._split(root, split, folder)

    def _split(self, root: str, split: str, folder: str) -> Iterator[StudyRef | Quarantined]:
        reports = _one(root, "radiology_text_reports", f"{_TABLES[split]}_reports.csv")
        labels = _by_volume(root, _one(root, "multi_abnormality_labels", f"{split}_predicted_labels.csv"), LABELS)
        headers: dict[str, Row] = {}
        if not self._fixed:
            headers = _by_volume(root, _one(root, "metadata", f"{_TABLES[split]}_metadata.csv"), _GEOMETRY)
        elsewhere = _not_of_the_chest(root, split)
        scans: dict[str, list[Row]] = {}
        for row in read_rows(root, reports, ("VolumeName", *CT_RATE_SECTIONS.values()), optional=()):
            name = _NAME.fullmatch(_stem(row["VolumeName"]))
            if not name or name[2] != split:
                yield row.refused(ValueError(f"VolumeName is not {split}_<patient>_<scan>_<reconstruction>"))
            elif elsewhere & {name[0], f"{name[1]}_{name[3]}"}:
                yield row.refused(ValueError("the owners list the volume as not of the chest"), study_id=name[0])
            else:
                scans.setdefault(f"{name[1]}_{name[3]}", []).append(row)
        for study_id, rows in scans.items():
            read: list[Row] = []
            geometry: dict[str, VolumeHeader] = {}
            for row in rows:
                volume = _stem(row["VolumeName"])
                try:
                    if not self._fixed:
                        geometry[volume] = _header(volume, headers)
                    read.append(row)
                except ValueError as error:
                    # The other reconstructions of the scan are read all the same.
                    yield row.refused(error, study_id=study_id)
            try:
                if read:
                    yield self._ref(study_id, read, labels, geometry, split, folder)
            except ValueError as error:
                yield read[0].refused(error, study_id=study_id)

    def _ref(
        self,
        study_id: str,
        rows: Sequence[Row],
        labels: Mapping[str, Row],
        geometry: Mapping[str, VolumeHeader],
        split: str,
        folder: str,
    ) -> StudyRef:
        volumes = [_stem(row["VolumeName"]) for row in rows]
        patient = study_id.rpartition("_")[0]
        reports = {tuple(row[column] for column in CT_RATE_SECTIONS.values()) for row in rows}
        values = [labels[volume].labels(LABELS) for volume in volumes if volume in labels]
        if len(reports) > 1 or any(other != values[0] for other in values):
            raise ValueError("the reconstructions of the scan have different reports or labels")
        return StudyRef(
            study_id=study_id,
            patient_id=patient,
            corpus=self.name,
            split=_SPLITS[split],
            files=tuple(
                FileRef(
                    image_id=volume,
                    path=f"{folder}/{patient}/{study_id}/{volume}.nii.gz",
                    header=geometry.get(volume),
                )
                for volume in volumes
            ),
            report=ct_rate_report(rows[0].cells),
            labels=values[0] if values else {},
        )


def _one(root: str, folder: str, name: str) -> str:
    """The table, under its name or with the prefix of older releases."""
    names = [f"dataset/{folder}/{name}", f"dataset/{folder}/dataset_{folder}_{name}"]
    return one_of_files(root, names, "CT-RATE")


def _by_volume(root: str, table: str, columns: Sequence[str]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for row in read_rows(root, table, ("VolumeName", *columns), optional=()):
        if rows.setdefault(_stem(row["VolumeName"]), row) is not row:
            raise CorpusError(f"{table}, row {row.number}: {row['VolumeName']} occurs twice")
    return rows


def _not_of_the_chest(root: str, split: str) -> frozenset[str]:
    """Volumes or scans that the owners list as showing another body part."""
    name = f"dataset/metadata/no_chest_{split}.txt"
    if not existing(root, [name]):
        return frozenset()
    return frozenset(_stem(line.strip()) for line in read_text(root, name).splitlines() if line.strip())


def _stem(name: str) -> str:
    return PurePosixPath(name).name.removesuffix(".gz").removesuffix(".nii")


def _header(volume: str, headers: Mapping[str, Row]) -> VolumeHeader:
    """Geometry and scale of the metadata table. Raises ValueError naming the cell."""
    if volume not in headers:
        raise ValueError(f"the metadata table lacks {volume}; its own header is not to be trusted")
    row = headers[volume]
    across, down = _numbers(row, "XYSpacing", 2)
    direction = np.array(_numbers(row, "ImageOrientationPatient", 6)).reshape(2, 3)
    normal = np.cross(direction[0], direction[1])
    axes = tuple(tuple(float(v) for v in axis) for axis in (normal, direction[1], direction[0]))
    return VolumeHeader(
        axes=axes,
        spacing_mm=(row.real("ZSpacing"), down, across),
        slope=row.real("RescaleSlope"),
        intercept=row.real("RescaleIntercept"),
    )


def _numbers(row: Row, field: str, count: int) -> list[float]:
    """A cell such as ``[0.75, 0.75]`` or ``['1', '0', ...]``. Raises ValueError naming the field."""
    try:
        values = [float(value) for value in json.loads(row[field].replace("'", '"'))]
    except (ValueError, TypeError):
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"{field} is {row[field]!r}; a list of {count} numbers is needed")
    return values
