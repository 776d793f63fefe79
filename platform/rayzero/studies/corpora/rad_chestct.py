"""RAD-ChestCT, the public 3,630 of 35,747 volumes (datasets spec, 2.9; BrgSA spec, sections 1 and 8).

::

    <id>.npz                                           anywhere under the root: trn00001.npz, val..., tst...
    CT_Scan_Metadata_Complete_35747.csv                VolumeAcc_DEID, NoteAcc_DEID, orig_orientation, ...
    {imgtrain, imgvalid, imgtest}_Abnormality_and_Location_Labels.csv

The arrays are Hounsfield units of 0.8 mm isotropic voxels, first slice at the head. Rows of the tables whose volume
was not released are passed over. There are no reports. Labels keep the 84 names of the corpus; a cell of
abnormality*location that is 1 makes the abnormality present. ``ct_rate_labels`` gives the 16 classes of CT-RATE.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from rayzero.storage import open_url
from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.tables import Row, existing, find_files, read_rows
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Split
from rayzero.studies.voxels import VolumeHeader

METADATA = "CT_Scan_Metadata_Complete_35747.csv"
SPACING_MM = 0.8
CT_RATE_CLASSES: dict[str, tuple[str, ...]] = {
    "Medical material": (
        "catheter_or_port", "tracheal_tube", "chest_tube", "breast_implant", "pacemaker_or_defib", "stent", "clip",
        "staple", "gi_tube", "hardware", "suture",
    ),
    "Calcification": ("calcification",),
    "Cardiomegaly": ("cardiomegaly",),
    "Pericardial effusion": ("pericardial_effusion",),
    "Hiatal hernia": ("hernia",),
    "Lymphadenopathy": ("lymphadenopathy",),
    "Emphysema": ("emphysema",),
    "Atelectasis": ("atelectasis",),
    "Lung nodule": ("nodule", "nodulegr1cm"),
    "Lung opacity": ("opacity",),
    "Pulmonary fibrotic sequela": ("scarring",),
    "Pleural effusion": ("pleural_effusion",),
    "Peribronchial thickening": ("bronchial_wall_thickening",),
    "Consolidation": ("consolidation",),
    "Bronchiectasis": ("bronchiectasis",),
    "Interlobular septal thickening": ("septal_thickening",),
}  # fmt: skip
"""The classes shared with CT-RATE, each from any of its labels. Calcification stands for CT-RATE's two."""

_SPLITS: dict[str, tuple[str, Split]] = {
    "trn": ("imgtrain", "train"),
    "val": ("imgvalid", "validation"),
    "tst": ("imgtest", "test"),
}


class RadChestCt:
    """Volumes with 84 labels each."""

    name = "rad-chestct"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        paths = find_files(root, (".npz",), key=lambda path: PurePosixPath(path).stem)
        labels: dict[str, dict[str, int]] = {}
        for table, _ in _SPLITS.values():
            labels |= _read_labels(root, f"{table}_Abnormality_and_Location_Labels.csv", set(paths))
        columns = ("VolumeAcc_DEID", "NoteAcc_DEID", "orig_orientation")
        for row in read_rows(root, METADATA, columns, optional=("MRN_DEID",)):
            volume = row["VolumeAcc_DEID"].removesuffix(".npz")
            path = paths.pop(volume, None)
            if path is None:
                continue
            try:
                yield self._ref(row, volume, path, labels)
            except ValueError as error:
                yield row.refused(error, study_id=volume)
        for volume, path in paths.items():
            reason = f"{METADATA} does not list the volume"
            yield Quarantined(study_id=volume, file=path, stage="table", reason=reason)

    def _ref(self, row: Row, volume: str, path: str, labels: Mapping[str, Mapping[str, int]]) -> StudyRef:
        if volume[:3] not in _SPLITS:
            raise ValueError(f"VolumeAcc_DEID is {volume!r}; it begins with {', '.join(_SPLITS)}")
        note = row.filled("NoteAcc_DEID").removesuffix(".npz")
        if note not in labels:
            raise ValueError(f"the label tables do not list {note}")
        return StudyRef(
            study_id=volume,
            patient_id=row.get("MRN_DEID") or volume,
            corpus=self.name,
            split=_SPLITS[volume[:3]][1],
            files=(FileRef(image_id=volume, path=path, header=_header(row)),),
            labels=labels[note],
        )


def ct_rate_labels(labels: Mapping[str, int]) -> dict[str, int]:
    """The 16 classes of ``CT_RATE_CLASSES`` from the labels of a study. Raises KeyError for one that is missing."""
    return {name: max(labels[source] for source in sources) for name, sources in CT_RATE_CLASSES.items()}


def _header(row: Row) -> VolumeHeader:
    """Orientation from the metadata table; the slices are stored from head to feet, against its third direction."""
    try:
        values = [float(value) for value in row["orig_orientation"].strip("[]()").split(",")]
    except ValueError:
        values = []
    if len(values) == 6:
        values += [0.0, 0.0, 1.0]
    if len(values) != 9 or not np.isfinite(values).all():
        raise ValueError(f"orig_orientation is {row['orig_orientation']!r}; 6 or 9 numbers are needed")
    across, down, normal = np.array(values).reshape(3, 3)
    axes = tuple(tuple(float(v) for v in axis) for axis in (-normal, down, across))
    return VolumeHeader(axes=axes, spacing_mm=(SPACING_MM, SPACING_MM, SPACING_MM))


def _read_labels(root: str, name: str, wanted: set[str]) -> dict[str, dict[str, int]]:
    """{NoteAcc_DEID: {abnormality: 1 or 0}} of the ``wanted`` rows.

    Read a block at a time: the tables hold 84 x 52 columns for ten times as many volumes as were released.
    """
    if not existing(root, [name]):
        raise CorpusError(f"{root} holds no {name}; is it the root of RAD-ChestCT?")
    fs, base = open_url(root)
    labels: dict[str, dict[str, int]] = {}
    try:
        with fsspec.open(fs.unstrip_protocol(f"{base}/{name}"), "rb") as file:
            header = file.readline().decode("utf-8-sig").strip().split(",")
            columns = [column.strip().strip('"') for column in header]
            groups = _groups(columns, name)
            types: dict[str, Any] = dict.fromkeys(columns, pa.float32())
            types["NoteAcc_DEID"] = pa.string()
            reader = arrow_csv.open_csv(
                file,
                read_options=arrow_csv.ReadOptions(column_names=columns, block_size=2**22, use_threads=False),
                convert_options=arrow_csv.ConvertOptions(column_types=types),
            )
            for batch in reader:
                keep = [k for k, note in enumerate(batch["NoteAcc_DEID"].to_pylist()) if note in wanted]
                part = batch.take(pa.array(keep, pa.int64()))
                notes = part["NoteAcc_DEID"].to_pylist()
                present = {
                    finding: np.max([np.nan_to_num(part[column].to_numpy(zero_copy_only=False)) for column in group], 0)
                    for finding, group in groups.items()
                }
                for k, note in enumerate(notes):
                    labels[note] = {finding: int(values[k] > 0) for finding, values in present.items()}
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise CorpusError(f"{name} is not a readable CSV table of numbers: {error}") from None
    return labels


def _groups(columns: list[str], name: str) -> dict[str, list[str]]:
    """The columns of each abnormality, over its locations. Raises CorpusError."""
    groups: dict[str, list[str]] = {}
    for column in columns:
        finding, star, _ = column.partition("*")
        if star:
            groups.setdefault(finding, []).append(column)
    missing = [source for sources in CT_RATE_CLASSES.values() for source in sources if source not in groups]
    if "NoteAcc_DEID" not in columns or missing:
        raise CorpusError(f"{name} lacks NoteAcc_DEID or the abnormalities {', '.join(missing)}")
    return groups
