"""VinDr-CXR as published on PhysioNet, and the train part that a challenge re-published (datasets spec, 2.6).

::

    vindr-cxr           annotations/{image_labels,annotations}_{train,test}.csv   {train,test}/<image_id>.dicom
    vindr-cxr-kaggle    train.csv: a reader's box a row     train/<image_id>.dicom

Three readers saw each train image: a finding is present when two or three of them saw it, absent when none did,
uncertain (-1) when one did; boxes are those of every reader, of findings that are present. Test labels are a
consensus. The corpus publishes no patient ids: each image counts as a patient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.labels import Closed, Splits
from rayzero.studies.corpora.regions import checked_box
from rayzero.studies.corpora.tables import read_rows
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Region, Split

LOCAL = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation",
    "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung cavity", "Lung cyst", "Lung Opacity",
    "Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax",
    "Pulmonary fibrosis", "Rib fracture", "Other lesion",
)  # fmt: skip
OTHER = "Other diseases"
LABELS = (*LOCAL, "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", OTHER, "No finding")
KAGGLE_LABELS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD", "Infiltration",
    "Lung Opacity", "Nodule/Mass", "Other lesion", "Pleural effusion", "Pleural thickening", "Pneumothorax",
    "Pulmonary fibrosis", "No finding",
)  # fmt: skip
_OTHER_IN_TEST = "Other disease"  # the test table's name of the column
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
READERS = 3


@dataclass
class _Image:
    """What each reader saw, and where."""

    readers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    regions: list[Region] = field(default_factory=list)


class VinDrCxr:
    """The published corpus."""

    name = "vindr-cxr"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        images: dict[str, _Image] = defaultdict(_Image)
        table = "annotations/image_labels_train.csv"
        for row in read_rows(root, table, ("image_id", "rad_id", *LABELS), optional=()):
            try:
                given = row.labels(LABELS)
                readers = images[row.filled("image_id")].readers
                if row.filled("rad_id") in readers:
                    raise ValueError(f"reader {row['rad_id']} occurs twice for the image")
                readers[row["rad_id"]] = {name for name, value in given.items() if value == 1}
            except ValueError as error:
                yield row.refused(error, study_id=row["image_id"])
        yield from _read_boxes(root, "annotations/annotations_train.csv", images, LOCAL)
        for image_id, image in images.items():
            yield _voted(self.name, image_id, image, LABELS, "train")
        yield from self._test(root)

    def _test(self, root: str) -> Iterator[StudyRef | Quarantined]:
        boxes: dict[str, _Image] = defaultdict(_Image)
        yield from _read_boxes(root, "annotations/annotations_test.csv", boxes, LOCAL)
        zeros = dict.fromkeys(LABELS, 0)
        fields = [_OTHER_IN_TEST if name == OTHER else name for name in LABELS]
        for row in read_rows(root, "annotations/image_labels_test.csv", ("image_id", *fields), optional=()):
            try:
                image_id, given = row.filled("image_id"), row.labels(fields)
                positive = [name for name, field_name in zip(LABELS, fields, strict=True) if given.get(field_name) == 1]
                yield _ref(self.name, image_id, "test", Closed(zeros, positive), boxes.pop(image_id, _Image()).regions)
            except ValueError as error:
                yield row.refused(error, study_id=row["image_id"])
        for image_id in boxes:
            reason = "image_labels_test.csv has no such image"
            yield Quarantined(study_id=image_id, file="annotations_test.csv", stage="table", reason=reason)


class VinDrCxrKaggle:
    """The challenge's train part: 14 local findings and "No finding"; splits by image, or by ``splits.csv``."""

    name = "vindr-cxr-kaggle"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        images: dict[str, _Image] = defaultdict(_Image)
        yield from _read_boxes(root, "train.csv", images, KAGGLE_LABELS, readers=True)
        splits = Splits(root)
        for image_id, image in images.items():
            try:
                split = splits.of(image_id, image_id)
            except ValueError as error:
                yield Quarantined(study_id=image_id, file="train.csv", stage="table", reason=str(error))
                continue
            yield _voted(self.name, image_id, image, KAGGLE_LABELS, split)


def _read_boxes(
    root: str, table: str, images: dict[str, _Image], classes: Sequence[str], *, readers: bool = False
) -> Iterator[Quarantined]:
    """Add a table's boxes to ``images``, with ``readers`` also what each saw; yields the rows that are no box."""
    names = {**{name: name for name in classes}, "No finding": "No finding"}
    for row in read_rows(root, table, ("image_id", "class_name", *_CORNERS), optional=("rad_id",)):
        try:
            image_id, finding = row.filled("image_id"), row.one_of("class_name", names)
            # Only "No finding" has no place in the image.
            box = None if finding == "No finding" else checked_box(*(row.real(name) for name in _CORNERS))
            if readers:
                images[image_id].readers[row.filled("rad_id")].add(finding)
            if box is not None:
                images[image_id].regions.append(Region(image_id=image_id, finding=finding, phrase=finding, box=box))
        except ValueError as error:
            yield row.refused(error, study_id=row["image_id"])


def _voted(corpus: str, image_id: str, image: _Image, classes: Sequence[str], split: Split) -> StudyRef | Quarantined:
    """The readers' vote on ``image``; a quarantine entry when they are not three."""
    if len(image.readers) != READERS:
        reason = f"{len(image.readers)} readers labelled the image; {READERS} are needed for a vote"
        return Quarantined(study_id=image_id, file="", stage="table", reason=reason)
    votes = {name: sum(name in seen for seen in image.readers.values()) for name in classes}
    labels = {name: {0: 0, 1: -1}.get(count, 1) for name, count in votes.items()}
    return _ref(corpus, image_id, split, labels, [region for region in image.regions if labels[region.finding] == 1])


def _ref(corpus: str, image_id: str, split: Split, labels: Mapping[str, int], regions: Sequence[Region]) -> StudyRef:
    folder = "test" if (corpus, split) == (VinDrCxr.name, "test") else "train"
    return StudyRef(
        study_id=image_id,
        patient_id=image_id,
        corpus=corpus,
        split=split,
        files=(FileRef(image_id=image_id, path=f"{folder}/{image_id}.dicom"),),
        labels=labels,
        regions=tuple(regions),
    )
