"""A plain folder of one's own: ``studies.csv`` beside the image files.

::

    studies.csv     study_id, patient_id, split (train, validation, test), images (relative paths, ";"-separated);
                    optional: views (one for each image, ";"-separated), study_time (ISO 8601), prior_study_id, and
                    report: the text itself, or the path of a .txt file
    labels.csv      optional: study_id, then a column per finding: 1, 0, -1 (uncertain) or blank
    boxes.csv       optional: image (a path of studies.csv), finding, x0, y0, x1, y1 in pixels; optional: phrase

The lake's image ids are ``<study_id>/<path less its extension>``; a dot may be part of a name that is a UID.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import get_args

from rayzero.studies.corpora.base import FileRef, StudyRef, common_fields
from rayzero.studies.corpora.regions import checked_box
from rayzero.studies.corpora.tables import Row, existing, read_rows
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Region, View

_STUDIES, _LABELS, _BOXES = "studies.csv", "labels.csv", "boxes.csv"
_REQUIRED = ("study_id", "patient_id", "split", "images")
_OPTIONAL = ("views", "study_time", "prior_study_id", "report")
_CORNERS = ("x0", "y0", "x1", "y1")
_SUFFIXES = (".nii.gz", ".nii", ".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".npz", ".zip")
_VIEWS: dict[str, View] = {view: view for view in get_args(View)}


class FolderCorpus:
    """Studies listed in tables of one's own."""

    name = "folder"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        tables = existing(root, [_LABELS, _BOXES])
        labels: dict[str, Row] = {}
        if _LABELS in tables:
            for row in read_rows(root, _LABELS, ("study_id",)):
                if labels.setdefault(row["study_id"], row) is not row:
                    yield row.refused(ValueError("the study has a row already, which counts"), study_id=row["study_id"])
        boxes: dict[str, list[Row]] = defaultdict(list)
        if _BOXES in tables:
            for row in read_rows(root, _BOXES, ("image", "finding", *_CORNERS), optional=("phrase",)):
                boxes[row["image"]].append(row)
        for row in read_rows(root, _STUDIES, _REQUIRED, optional=_OPTIONAL):
            study_id = row["study_id"]
            try:
                files = _files(row)
                regions: list[Region] = []
                for file in files:
                    for box in boxes.pop(file.path, ()):
                        try:
                            regions.append(_region(box, file.image_id))
                        except ValueError as error:
                            yield box.refused(error, study_id=study_id)
                yield self._ref(row, files, labels.pop(study_id, None), tuple(regions))
            except ValueError as error:
                yield row.refused(error, study_id=study_id)
        for study_id, unused in labels.items():
            yield unused.refused(ValueError(f"{_STUDIES} has no such study, or it was refused"), study_id=study_id)
        for rows in boxes.values():
            for unused in rows:
                yield unused.refused(ValueError(f"{_STUDIES} has no such image, or it was refused"))

    def _ref(self, row: Row, files: tuple[FileRef, ...], labels: Row | None, regions: tuple[Region, ...]) -> StudyRef:
        split, time, prior = common_fields(row)
        report = row.get("report")
        is_file = report.lower().endswith(".txt") and "\n" not in report
        return StudyRef(
            study_id=row["study_id"],
            patient_id=row["patient_id"],
            corpus=self.name,
            split=split,
            study_time=time,
            prior_study_id=prior,
            files=files,
            report="" if is_file else report,
            report_file=report if is_file else "",
            labels=labels.labels([name for name in labels.cells if name != "study_id"]) if labels else {},
            regions=regions,
        )


def _files(row: Row) -> tuple[FileRef, ...]:
    paths = [path.strip() for path in row["images"].split(";") if path.strip()]
    if len(set(paths)) != len(paths):
        raise ValueError("images names a file twice")
    names = [view.strip() for view in row.get("views").split(";")] if row.get("views") else [""] * len(paths)
    if len(names) != len(paths):
        raise ValueError(f"views has {len(names)} entries for {len(paths)} images")
    unknown = [name for name in names if name and name not in _VIEWS]
    if unknown:
        raise ValueError(f"views has {unknown[0]!r}; known are {', '.join(_VIEWS)}")
    # The whole path less its extension: two folders of a study may use one file name.
    ids: dict[str, str] = {}
    for path in paths:
        other = ids.setdefault(_stem(path), path)
        if other != path:
            raise ValueError(
                f"{other} and {path} are two files of one image id, {row['study_id']}/{_stem(path)}; rename one"
            )
    return tuple(
        FileRef(image_id=f"{row['study_id']}/{stem}", path=path, view=_VIEWS.get(name))
        for (stem, path), name in zip(ids.items(), names, strict=True)
    )


def _stem(path: str) -> str:
    """``path`` less the extension of an image: that of ``1.2.840.10008`` is none."""
    plain = PurePosixPath(path)
    extension = next((suffix for suffix in _SUFFIXES if plain.name.lower().endswith(suffix)), "")
    stem = plain.name[: len(plain.name) - len(extension)] or plain.name
    return str(plain.with_name(stem)) if plain.name else path


def _region(row: Row, image_id: str) -> Region:
    finding = row.filled("finding")
    box = checked_box(*(row.real(name) for name in _CORNERS))
    return Region(image_id=image_id, finding=finding, phrase=row.get("phrase") or finding, box=box)
