"""ChestX-Det10: boxes of ten findings on images of NIH ChestX-ray14 (datasets spec, 2.5).

::

    train.json  test.json       lists of {"file_name", "syms": [...], "boxes": [[x1, y1, x2, y2], ...]}
    train_data/  test_data/     the images, renamed: which of NIH's they are is not published

Each image counts as a study of a patient of its own. Ingest ChestX-ray14 with ``--exclude`` and this lake before
pretraining on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.labels import Closed
from rayzero.studies.corpora.regions import checked_box
from rayzero.studies.corpora.tables import read_json
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Region, Split

LABELS = (
    "Atelectasis", "Calcification", "Consolidation", "Effusion", "Emphysema", "Fibrosis", "Fracture", "Mass", "Nodule",
    "Pneumothorax",
)  # fmt: skip
_ZEROS = dict.fromkeys(LABELS, 0)
_PARTS: dict[str, Split] = {"train": "train", "test": "test"}


class ChestXDet10:
    """Frontal films with boxes."""

    name = "chestx-det10"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        for part, split in _PARTS.items():
            table = f"{part}.json"
            records = read_json(root, table)
            if not isinstance(records, list):
                raise CorpusError(f"{table} holds a {type(records).__name__}; a list of images is needed")
            for number, record in enumerate(records, start=1):
                try:
                    yield self._ref(record, f"{part}_data", split)
                except ValueError as error:
                    place = f"{table}, entry {number}"
                    yield Quarantined(study_id="", file=place, stage="table", reason=str(error))

    def _ref(self, record: Any, folder: str, split: Split) -> StudyRef:
        name, findings, boxes = _fields(record)
        image_id = PurePosixPath(name).stem
        return StudyRef(
            study_id=image_id,
            patient_id=image_id,
            corpus=self.name,
            split=split,
            files=(FileRef(image_id=image_id, path=f"{folder}/{name}", view="frontal"),),
            labels=Closed(_ZEROS, findings),
            regions=tuple(
                Region(image_id=image_id, finding=finding, phrase=finding, box=checked_box(*box))
                for finding, box in zip(findings, boxes, strict=True)
            ),
        )


def _fields(record: Any) -> tuple[str, list[str], list[list[float]]]:
    """``file_name``, ``syms`` and ``boxes`` of a record. Raises ValueError naming the one that is wrong."""
    if not isinstance(record, dict):
        raise ValueError(f"the entry is a {type(record).__name__}; an object is needed")
    name, findings, boxes = (record.get(field) for field in ("file_name", "syms", "boxes"))
    if not isinstance(name, str) or not name:
        raise ValueError(f"file_name is {name!r}; a file name is needed")
    if not isinstance(findings, list) or not isinstance(boxes, list) or len(findings) != len(boxes):
        raise ValueError("syms and boxes are not two lists of one length")
    for box in boxes:
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            raise ValueError(f"boxes has {box!r}; x1, y1, x2, y2 are needed")
    return name, findings, boxes
