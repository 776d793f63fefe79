"""CheXpert v1.0, full or small (datasets spec, 1.3 and 2.4).

::

    train.csv  valid.csv            the first folder of their paths names the copy and is dropped
    groundtruth.csv                 optional: the test set's labels by study, as published apart from the images
    {train,valid,test}/patient00001/study1/view1_frontal.jpg

Labels are those of the study, one for all its views: 1, 0, -1, and absent where the report does not mention it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.tables import Row, existing, find_files, read_rows
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Split, View

LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
VIEWS: dict[str, View] = {"Frontal": "frontal", "Lateral": "lateral"}
_TABLES: dict[str, Split] = {"train.csv": "train", "valid.csv": "validation"}
_TEST = "groundtruth.csv"
_PATH = re.compile(r"(?:^|/)((?:train|valid|test)/(patient\d+)/(study\d+))(?:/(view[^/]+)\.(?:jpg|png|dcm))?$")


@dataclass
class _Study:
    patient: str
    labels: dict[str, int]
    files: list[FileRef] = field(default_factory=list)


class CheXpert:
    """Labelled studies without reports."""

    name = "chexpert"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        for table, split in _TABLES.items():
            studies: dict[str, _Study] = {}
            for row in read_rows(root, table, ("Path", "Frontal/Lateral", *LABELS), optional=()):
                try:
                    _add(row, studies)
                except ValueError as error:
                    yield row.refused(error)
            yield from self._refs(studies, split)
        if existing(root, [_TEST]):
            yield from self._test(root)

    def _test(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """The test studies: one row each, whose images are those in its folder."""
        folders: dict[str, list[str]] = defaultdict(list)
        for path in sorted(find_files(root, (".jpg",), key=str)):
            folders[str(PurePosixPath(path).parent)].append(path)
        studies: dict[str, _Study] = {}
        for row in read_rows(root, _TEST, ("Study", *LABELS), optional=()):
            try:
                folder, patient, study_id, _ = split_path(row["Study"])
                files = [_file(path, None) for path in folders.get(folder, ())]
                if study_id in studies:
                    raise ValueError("the study occurs twice")
                studies[study_id] = _Study(patient, row.labels(LABELS), files)
            except ValueError as error:
                yield row.refused(error)
        yield from self._refs(studies, "test")

    def _refs(self, studies: Mapping[str, _Study], split: Split) -> Iterator[StudyRef]:
        for study_id, study in studies.items():
            yield StudyRef(
                study_id=study_id,
                patient_id=study.patient,
                corpus=self.name,
                split=split,
                files=tuple(study.files),
                labels=study.labels,
            )


def split_path(path: str) -> tuple[str, str, str, str]:
    """(folder, patient_id, study_id, image_id) of a study's or an image's path; image_id is "" for a study.

    The folder is relative to the root, whatever copy the path names. Raises ValueError for another form.
    """
    match = _PATH.search(path)
    if not match:
        raise ValueError(f"the path {path!r} is not .../train/patient<n>/study<n>/view<n>_frontal.jpg")
    study_id = f"{match[2]}/{match[3]}"
    return match[1], match[2], study_id, f"{study_id}/{match[4]}" if match[4] else ""


def image_file(row: Row) -> tuple[str, str, FileRef]:
    """(patient_id, study_id, file) of a row with ``Path`` and ``Frontal/Lateral``. Raises ValueError."""
    folder, patient, study_id, image_id = split_path(row["Path"])
    if not image_id:
        raise ValueError(f"Path {row['Path']!r} names no image")
    path = f"{folder}/{PurePosixPath(row['Path']).name}"
    return patient, study_id, _file(path, row.one_of("Frontal/Lateral", VIEWS))


def _file(path: str, view: View | None) -> FileRef:
    image_id = split_path(path)[3]
    named: View = "lateral" if image_id.endswith("_lateral") else "frontal"
    return FileRef(image_id=image_id, path=path, view=view or named)


def _add(row: Row, studies: dict[str, _Study]) -> None:
    patient, study_id, file = image_file(row)
    labels = row.labels(LABELS)
    study = studies.setdefault(study_id, _Study(patient, labels))
    if study.labels != labels:
        raise ValueError("the labels differ from those of the study's other images")
    study.files.append(file)
