"""MS-CXR: phrases with boxes on images of MIMIC-CXR-JPG (datasets spec, 3.1).

``MS_CXR_Local_Alignment_v{1.1.0,1.0.0}.csv`` lies in the root of MIMIC-CXR-JPG. One phrase may have several boxes.
Release 1.0.0 has no split: all of it is test. The ids are those of MIMIC-CXR, most of whose images are in that
corpus's train split: ingest it with ``--exclude`` and this lake before pretraining on it.

``MsCxrMedRpg`` reads the list on which papers play the pointing game, ``MS-CXR/test.json`` with one
``{"image": path, "det": [{"name": phrase, "label": [[x1, y1, x2, y2]]}]}`` per pair: the first box counts alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.mimic import ids_of_path
from rayzero.studies.corpora.regions import box_from_corner, checked_box
from rayzero.studies.corpora.tables import Row, one_of_files, read_json, read_rows
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Region, Split

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Lung Opacity", "Pleural Effusion", "Pneumonia",
    "Pneumothorax",
)  # fmt: skip
_TABLES = ("MS_CXR_Local_Alignment_v1.1.0.csv", "MS_CXR_Local_Alignment_v1.0.0.csv")
_LIST = "MS-CXR/test.json"
_FIELDS = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "validate": "validation", "test": "test"}


@dataclass
class _Study:
    patient: str
    split: Split
    files: dict[str, FileRef] = field(default_factory=dict)
    regions: list[Region] = field(default_factory=list)


class MsCxr:
    """Grounded phrases."""

    name = "ms-cxr"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        studies: dict[str, _Study] = {}
        table = one_of_files(root, _TABLES, "the table of phrases and boxes")
        for row in read_rows(root, table, _FIELDS, optional=("split",)):
            try:
                self._add(row, studies)
            except ValueError as error:
                yield row.refused(error)
        for study_id, study in studies.items():
            yield replace(_ref(self.name, study_id, study), labels={region.finding: 1 for region in study.regions})

    def _add(self, row: Row, studies: dict[str, _Study]) -> None:
        patient, study_id, image_id = ids_of_path(row["path"])
        if image_id != row["dicom_id"]:
            raise ValueError(f"dicom_id is {row['dicom_id']!r}, path names {image_id!r}")
        split = row.one_of("split", _SPLITS) if "split" in row.cells else "test"
        region = Region(
            image_id=image_id,
            finding=row.one_of("category_name", {name: name for name in FINDINGS}),
            phrase=row.filled("label_text"),
            box=box_from_corner(*(row.real(name) for name in ("x", "y", "w", "h"))),
        )
        size = row.integer("image_height"), row.integer("image_width")
        study = studies.setdefault(study_id, _Study(patient, split))
        if study.split != split:
            raise ValueError(f"the study is in two splits, {study.split} and {split}")
        study.files.setdefault(image_id, FileRef(image_id=image_id, path=row["path"], size=size))
        study.regions.append(region)


class MsCxrMedRpg:
    """The pairs of an image and a phrase in MedRPG's test split; the list names no findings."""

    name = "ms-cxr-medrpg"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        records = read_json(root, _LIST)
        if not isinstance(records, list):
            raise CorpusError(f"{_LIST} holds a {type(records).__name__}; a list of images is needed")
        studies: dict[str, _Study] = {}
        for number, record in enumerate(records, start=1):
            try:
                path, phrase, box = _pair(record)
                patient, study_id, image_id = ids_of_path(path)
                region = Region(image_id=image_id, finding=phrase, phrase=phrase, box=checked_box(*box))
            except ValueError as error:
                yield Quarantined(study_id="", file=f"{_LIST}, entry {number}", stage="table", reason=str(error))
                continue
            study = studies.setdefault(study_id, _Study(patient, "test"))
            study.files.setdefault(image_id, FileRef(image_id=image_id, path=path))
            study.regions.append(region)
        for study_id, study in studies.items():
            yield _ref(self.name, study_id, study)


def _ref(corpus: str, study_id: str, study: _Study) -> StudyRef:
    return StudyRef(
        study_id=study_id,
        patient_id=study.patient,
        corpus=corpus,
        split=study.split,
        files=tuple(study.files.values()),
        regions=tuple(study.regions),
    )


def _pair(record: Any) -> tuple[str, str, list[float]]:
    """The path, the phrase and the first box of an entry. Raises ValueError when it has another form."""
    try:
        path, phrase, box = record["image"], record["det"][0]["name"], record["det"][0]["label"][0]
    except (KeyError, IndexError, TypeError):
        path = phrase = box = None
    texts = all(isinstance(text, str) and text.strip() for text in (path, phrase))
    if not (texts and isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box)):
        raise ValueError('the entry is not {"image": path, "det": [{"name": phrase, "label": [[x1, y1, x2, y2]]}]}')
    return path, phrase, box
