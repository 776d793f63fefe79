"""CheXpert Plus: the reports of CheXpert's studies (datasets spec, 1.3).

::

    df_chexpert_plus_240401.csv             an image a row, with its report in sections
    chexbert_labels/report_fixed.json       optional: labels, a JSON object a line
    train/..., PNG/train/..., PNG/PNG/...   the images; ``path_to_image`` ends in .jpg also where they are PNG

A study's prior is the one before it in ``patient_report_date_order``: the corpus publishes no dates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from rayzero.reports.layouts import chexpert_plus_report
from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.chexpert import LABELS, VIEWS, split_path
from rayzero.studies.corpora.labels import link_priors
from rayzero.studies.corpora.tables import Row, existing, parse_json, read_rows, read_text
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Report, Split

_TABLE = "df_chexpert_plus_240401.csv"
_FIELDS = (
    "path_to_image", "frontal_lateral", "patient_report_date_order", "report", "section_findings",
    "section_impression", "split",
)  # fmt: skip
_LABELS = "chexbert_labels/report_fixed.json"
_LAYOUTS = ("{}.jpg", "{}.png", "PNG/{}.png", "PNG/PNG/{}.png")
_PROBED = 100  # rows whose images are looked for to tell the layout: some may be missing in any copy
_SPLITS: dict[str, Split] = {"train": "train", "valid": "validation"}


@dataclass
class _Study:
    patient: str
    split: Split
    order: float
    report: Report
    files: list[FileRef] = field(default_factory=list)


class CheXpertPlus:
    """CheXpert with reports."""

    name = "chexpert-plus"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        studies: dict[str, _Study] = {}
        rows = read_rows(root, _TABLE, _FIELDS, optional=())
        head = list(islice(rows, _PROBED))
        layout = _layout(root, head) if head else ""
        for row in chain(head, rows):
            try:
                _add(row, studies, layout)
            except ValueError as error:
                yield row.refused(error)
        labels = _read_labels(root) if existing(root, [_LABELS]) else {}
        priors = link_priors({study_id: (study.patient, study.order) for study_id, study in studies.items()})
        for study_id, study in studies.items():
            yield StudyRef(
                study_id=study_id,
                patient_id=study.patient,
                corpus=self.name,
                split=study.split,
                prior_study_id=priors.get(study_id),
                files=tuple(study.files),
                report=study.report,
                labels=labels.get(study_id, {}),
            )


def _layout(root: str, rows: Sequence[Row]) -> str:
    """Where the first image that is there lies decides for all. Raises CorpusError when none is in a known place."""
    stems = []
    for row in rows:
        try:
            folder, _, _, image_id = split_path(row["path_to_image"])
        except ValueError:
            continue  # refused in its turn
        stems.append(f"{folder}/{image_id.rpartition('/')[2]}")
        found = [layout for layout in _LAYOUTS if existing(root, [layout.format(stems[-1])])]
        if found:
            return found[0]
    if not stems:
        raise CorpusError(f"{_TABLE}: the path_to_image of none of the first {len(rows)} rows is one of CheXpert's")
    places = ", ".join(layout.format(stems[0]) for layout in _LAYOUTS)
    raise CorpusError(f"{root} holds no image of the first {len(rows)} rows of {_TABLE}; the first may be at: {places}")


def _add(row: Row, studies: dict[str, _Study], layout: str) -> None:
    folder, patient, study_id, image_id = split_path(row["path_to_image"])
    if not image_id:
        raise ValueError(f"path_to_image {row['path_to_image']!r} names no image")
    report = chexpert_plus_report(row.cells)
    split, order = row.one_of("split", _SPLITS), row.real("patient_report_date_order")
    study = studies.setdefault(study_id, _Study(patient, split, order, report))
    if (study.split, study.order, study.report) != (split, order, report):
        raise ValueError("the image differs from others of its study in split, order or report")
    path = layout.format(f"{folder}/{image_id.rpartition('/')[2]}")
    study.files.append(FileRef(image_id=image_id, path=path, view=row.one_of("frontal_lateral", VIEWS)))


def _read_labels(root: str) -> dict[str, Mapping[str, int]]:
    """Labels by study. Raises CorpusError naming the line."""
    labels: dict[str, Mapping[str, int]] = {}
    for number, line in enumerate(read_text(root, _LABELS).splitlines(), start=1):
        where = f"{_LABELS}, line {number}"
        record = parse_json(line, where)
        try:
            study_id = split_path(record["path_to_image"])[2]
            labels[study_id] = {name: _label(name, record[name]) for name in LABELS if record[name] is not None}
        except (KeyError, TypeError) as error:
            raise CorpusError(f"{where} lacks {error}") from None
        except ValueError as error:
            raise CorpusError(f"{where}: {error}") from None
    return labels


def _label(name: str, value: object) -> int:
    if value not in (1, 0, -1):
        raise ValueError(f"label {name} is {value!r}; give 1, 0, -1 or null")
    return int(value)  # type: ignore[call-overload, no-any-return]
