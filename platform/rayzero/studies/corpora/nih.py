"""NIH ChestX-ray14 (datasets spec, 2.3 and 3.2), with either of the two test lists that are in use.

::

    Data_Entry_2017_v2020.csv   BBox_List_2017.csv
    images/00000001_000.png     or images_001/images/..., wherever under the root
    nih-chestxray14             train_val_list.txt, test_list.txt: file names (86,524 and 25,596 images)
    nih-chestxray14-community   train_list.txt, val_list.txt, test_list.txt: a path and fourteen 0/1 flags a line
                                (78,468, 11,219 and 22,433 images)

Papers call either list official, and both files are named ``test_list.txt``: the corpus's name says which one is
meant, and the other one is refused. Each image is a study; its prior is the patient's image of the follow-up before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.labels import Closed, link_priors
from rayzero.studies.corpora.regions import box_from_corner
from rayzero.studies.corpora.tables import Row, find_files, read_rows, read_text
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Region, Split
from rayzero.studies.views import view_named

LABELS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
"""In the order of the community list's flags, which calls some of them by longer names."""
_ZEROS = dict.fromkeys(LABELS, 0)
_TABLE = "Data_Entry_2017_v2020.csv"
_FIELDS = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position")
_BOXES = "BBox_List_2017.csv"
_SIZE = (1024, 1024)
_RENAMED = {"Infiltrate": "Infiltration"}  # the box list's name for it
_OFFICIAL: dict[str, Split] = {"train_val_list.txt": "train", "test_list.txt": "test"}
_COMMUNITY: dict[str, Split] = {"train_list.txt": "train", "val_list.txt": "validation", "test_list.txt": "test"}


@dataclass(frozen=True)
class NihChestXray14:
    """ChestX-ray14 under the NIH's lists, or under those of the community."""

    name: str
    community: bool = False

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        lists = _COMMUNITY if self.community else _OFFICIAL
        splits: dict[str, Split] = {}
        flags: dict[str, Closed] = {}
        for name, split in lists.items():
            for file, labels in _read_list(root, name, self.community):
                if splits.setdefault(file, split) != split:
                    raise CorpusError(f"{name}: {file} is also in the list of split {splits[file]}")
                if labels is not None:
                    flags[file] = labels
        rows = list(read_rows(root, _TABLE, _FIELDS, optional=()))
        paths = find_files(root, (".png",), key=lambda path: PurePosixPath(path).name)
        boxes: dict[str, list[Region]] = defaultdict(list)
        yield from _read_boxes(root, boxes)
        order: dict[str, tuple[str, int]] = {}
        for row in rows:
            try:
                order[_stem(row["Image Index"])] = row.filled("Patient ID"), row.integer("Follow-up #")
            except ValueError as error:
                yield row.refused(error, study_id=_stem(row["Image Index"]))
        priors = link_priors(order)
        for row in rows:
            file = row["Image Index"]
            study_id = _stem(file)
            if study_id not in order:
                continue
            try:
                if file not in splits:
                    raise ValueError(f"no list of {', '.join(lists)} names the image")
                named = [name for name in row["Finding Labels"].split("|") if name != "No Finding"]
                yield StudyRef(
                    study_id=study_id,
                    patient_id=row["Patient ID"],
                    corpus=self.name,
                    split=splits[file],
                    prior_study_id=priors.get(study_id),
                    files=(_file(file, paths, row),),
                    labels=flags.get(file) or Closed(_ZEROS, named),
                    regions=tuple(boxes.pop(study_id, ())),
                )
            except ValueError as error:
                yield row.refused(error, study_id=study_id)
        for study_id in boxes:
            reason = f"{_TABLE} has no such image, or it was refused"
            yield Quarantined(study_id=study_id, file=_BOXES, stage="table", reason=reason)


def _file(name: str, paths: Mapping[str, str], row: Row) -> FileRef:
    path = paths.get(name, f"images/{name}")
    return FileRef(image_id=_stem(name), path=path, view=view_named(row["View Position"]), size=_SIZE)


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _read_list(root: str, name: str, community: bool) -> Iterator[tuple[str, Closed | None]]:
    """(file name, flags or None) a line. Raises CorpusError for a line of the other kind of list."""
    for number, line in enumerate(read_text(root, name).splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        wanted = 1 + len(LABELS) * community
        if len(cells) != wanted or any(flag not in ("0", "1") for flag in cells[1:]):
            other = "nih-chestxray14" if community else "nih-chestxray14-community"
            has = "a path and 14 flags of 0 or 1" if community else "one file name"
            raise CorpusError(
                f"{name}, line {number}: {len(cells)} cells, where this corpus has {has}; for the other list "
                f"use --corpus {other}"
            )
        positive = [label for label, flag in zip(LABELS, cells[1:], strict=community) if flag == "1"]
        yield PurePosixPath(cells[0]).name, Closed(_ZEROS, positive) if community else None


def _read_boxes(root: str, boxes: dict[str, list[Region]]) -> Iterator[Quarantined]:
    """Fill ``boxes`` by study_id; yields the rows that are none."""
    for row in read_box_list(root, _BOXES):
        image_id = _stem(row["Image Index"])
        try:
            finding = _RENAMED.get(row["Finding Label"], row["Finding Label"])
            if finding not in _ZEROS:
                raise ValueError(f"Finding Label is {finding!r}; known are {', '.join(LABELS)}")
            box = box_from_corner(*(row.real(name) for name in ("x", "y", "w", "h")))
            boxes[image_id].append(Region(image_id=image_id, finding=finding, phrase=finding, box=box))
        except ValueError as error:
            yield row.refused(error, study_id=image_id)


def read_box_list(root: str, name: str) -> Iterator[Row]:
    """The rows of a box list whose header ``Image Index,Finding Label,Bbox [x,y,w,h],,,`` does not fit its rows.

    Commas inside the brackets and at the end give nine names to rows of six cells, so the names are set here. Raises
    CorpusError for another header or a row of another length.
    """
    fields = ("Image Index", "Finding Label", "x", "y", "w", "h")
    lines = read_text(root, name).splitlines()
    header = "Image Index,Finding Label,Bbox [x,y,w,h]"
    if not lines or not lines[0].startswith(header):
        raise CorpusError(f"{name} does not begin with {header!r}")
    for number, line in enumerate(filter(None, lines[1:]), start=1):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < len(fields) or any(cells[len(fields) :]):
            raise CorpusError(f"{name}, row {number}: {len(cells)} cells, where {len(fields)} are needed")
        yield Row(name, number, dict(zip(fields, cells, strict=False)))
