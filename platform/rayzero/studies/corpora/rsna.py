"""RSNA Pneumonia Detection Challenge, stage 2, under the three protocols in use (datasets spec, 3.3).

::

    stage_2_train_images/<patientId>.dcm    stage_2_train_labels.csv: a box a row
    rsna-pneumonia            train, validation and test by patient, or by ``splits.csv`` (study_id, split)
    rsna-pneumonia-medklip    ``test.csv`` (img_path, boxes) names the 5,337 test images; the others are train
    rsna-pneumonia-alta       ``test_list.txt`` and ``val_list.txt``: ``stage_2_test_images/<id>.dcm 0|1`` a line,
                              3,000 test and 1,500 validation images; the other labelled ones are train

All images are NIH ChestX-ray14's under other names: ingest that corpus with ``--exclude`` and this lake before
pretraining on it. Boxes mark opacities and no outline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.labels import Splits
from rayzero.studies.corpora.regions import Box, box_from_corner
from rayzero.studies.corpora.tables import Row, read_rows, read_text
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Region, Split

FINDING = "Pneumonia"
_TABLE = "stage_2_train_labels.csv"
_CORNER = ("x", "y", "width", "height")
_FIELDS = ("patientId", *_CORNER, "Target")
_FOLDER = "stage_2_train_images"
_SIZE = (1024, 1024)
_ALTA: dict[str, Split] = {"val_list.txt": "validation", "test_list.txt": "test"}


@dataclass
class _Image:
    path: str
    target: int
    boxes: list[Box] = field(default_factory=list)
    split: Split = "train"


@dataclass(frozen=True)
class RsnaPneumonia:
    """The challenge's images with the split of one protocol; image, study and patient share one id."""

    name: str
    protocol: Literal["own", "medklip", "alta"] = "own"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        images: dict[str, _Image] = {}
        for row in read_rows(root, _TABLE, _FIELDS, optional=()):
            try:
                _add(row, images)
            except ValueError as error:
                yield row.refused(error, study_id=row["patientId"])
        if self.protocol == "medklip":
            _assign_medklip(root, images)
        elif self.protocol == "alta":
            _assign_alta(root, images)
        splits = Splits(root) if self.protocol == "own" else None
        for image_id, image in images.items():
            try:
                split = splits.of(image_id, image_id) if splits else image.split
            except ValueError as error:
                yield Quarantined(study_id=image_id, file=_TABLE, stage="table", reason=str(error))
                continue
            yield StudyRef(
                study_id=image_id,
                patient_id=image_id,
                corpus=self.name,
                split=split,
                files=(FileRef(image_id=image_id, path=image.path, size=_SIZE),),
                labels={FINDING: image.target},
                regions=tuple(
                    Region(image_id=image_id, finding=FINDING, phrase=FINDING, box=box) for box in image.boxes
                ),
            )


def _add(row: Row, images: dict[str, _Image]) -> None:
    image_id, target = row.filled("patientId"), row.one_of("Target", {"0": 0, "1": 1})
    given = [name for name in _CORNER if row[name]]
    if bool(given) != bool(target):
        raise ValueError(f"Target is {target}, and {', '.join(given) or 'no part of a box'} is given")
    box = box_from_corner(*(row.real(name) for name in _CORNER)) if target else None
    image = images.setdefault(image_id, _Image(f"{_FOLDER}/{image_id}.dcm", target))
    if image.target != target or (image.boxes and box is None):
        raise ValueError("Target differs from that of the image's other rows")
    if box is not None:
        image.boxes.append(box)


def _assign_medklip(root: str, images: Mapping[str, _Image]) -> None:
    """Mark the images of ``test.csv``. Raises CorpusError for one that differs from the challenge's labels."""
    for row in read_rows(root, "test.csv", ("img_path", "boxes"), optional=()):
        image_id = PurePosixPath(row["img_path"]).stem
        boxes = sum(1 for box in row["boxes"].split("|") if box)
        if image_id not in images or len(images[image_id].boxes) != boxes:
            has = f"{len(images[image_id].boxes)} boxes" if image_id in images else "no such image"
            raise CorpusError(f"test.csv, row {row.number}: {image_id!r} with {boxes} boxes; {_TABLE} has {has}")
        images[image_id].split = "test"


def _assign_alta(root: str, images: dict[str, _Image]) -> None:
    """Mark or add the images of the two lists. Raises CorpusError for a line of another form."""
    for name, split in _ALTA.items():
        for number, line in enumerate(read_text(root, name).splitlines(), start=1):
            cells = line.split()
            if not cells:
                continue
            if len(cells) != 2 or cells[1] not in ("0", "1"):
                raise CorpusError(f"{name}, line {number}: {line!r} is not <folder>/<id>.dcm 0|1")
            path, target = PurePosixPath(cells[0]), int(cells[1])
            image = images.setdefault(path.stem, _Image(str(path), target))
            if image.target != target or image.split != "train":
                raise CorpusError(
                    f"{name}, line {number}: {path.stem} is listed twice, or has another Target in {_TABLE}"
                )
            image.split = split
