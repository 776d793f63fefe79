"""INSPECT, CT pulmonary angiograms with impressions (datasets spec, 1.7).

::

    CTPA/<image_id>.nii.gz
    study_mapping_<date>.tsv     impression_id, person_id, image_id, procedure_DATETIME (blank in 779 rows)
    splits_<date>.tsv            impression_id, split; some ids twice
    labels_<date>.tsv            impression_id, pe_positive_nlp, ... as True, False or Censored
    impressions_<date>.tsv       impression_id, impressions

Tabs part the cells. A report is an impression alone. "Censored" is no label: it says that the patient was lost from
sight. The split is by patient, and so is the study's order in time, which the 779 rows without a time do not enter.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from datetime import datetime

from rayzero.storage import open_url
from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.labels import link_priors
from rayzero.studies.corpora.tables import Row, read_rows
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Report, Split

_SPLITS: dict[str, Split] = {"train": "train", "valid": "validation", "test": "test"}
_VALUES = {"True": 1, "False": 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0}
_NO_VALUE = ("", "Censored", "Censor")
_LABEL = re.compile(r"pe_\w+|\d+_month_\w+")
_KEYS = ("impression_id", "person_id", "image_id")


class Inspect:
    """Angiograms with the impression of the report and labels of embolism and outcome."""

    name = "inspect"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        splits = _unambiguous(read_rows(root, _table(root, "splits"), ("impression_id", "split"), optional=()))
        labels = {row["impression_id"]: row for row in read_rows(root, _table(root, "labels"), ("impression_id",))}
        columns = ("impression_id", "impressions")
        texts = {row["impression_id"]: row["impressions"] for row in
                 read_rows(root, _table(root, "impressions"), columns, optional=())}  # fmt: skip
        rows = list(read_rows(root, _table(root, "study_mapping"), _KEYS, optional=("procedure_DATETIME",)))
        times, damaged = _times(rows)
        yield from damaged
        priors = link_priors({row["impression_id"]: (row["person_id"], times[row["impression_id"]])
                              for row in rows if row["impression_id"] in times})  # fmt: skip
        for row in rows:
            study_id = row["impression_id"]
            try:
                split = splits.get(study_id)
                if split is None:
                    raise ValueError("the table of splits does not list the study")
                yield StudyRef(
                    study_id=row.filled("impression_id"),
                    patient_id=row.filled("person_id"),
                    corpus=self.name,
                    split=split.one_of("split", _SPLITS),
                    study_time=times.get(study_id),
                    prior_study_id=priors.get(study_id),
                    files=(_file(row),),
                    report=_report(texts.get(study_id, "")),
                    labels=_labels(labels[study_id]) if study_id in labels else {},
                )
            except ValueError as error:
                yield row.refused(error, study_id=study_id)


def _table(root: str, kind: str) -> str:
    """The table of that kind, whatever its date. Raises CorpusError when there is none, or more than one."""
    fs, base = open_url(root)
    if not fs.exists(base):
        raise CorpusError(f"no corpus at {root}: the folder does not exist")
    names = sorted(posixpath.basename(str(path)) for path in fs.glob(f"{base}/{kind}_*.tsv"))
    if len(names) != 1:
        found = f"{' and '.join(names)}; keep one" if names else f"no {kind}_<date>.tsv"
        raise CorpusError(f"{root} holds {found} (INSPECT)")
    return names[0]


def _unambiguous(rows: Iterator[Row]) -> dict[str, Row]:
    """Rows by impression_id. An id that occurs twice is harmless while its rows agree. Raises CorpusError otherwise."""
    found: dict[str, Row] = {}
    for row in rows:
        other = found.setdefault(row["impression_id"], row)
        if other["split"] != row["split"]:
            raise CorpusError(f"{row.table}, row {row.number}: {row['impression_id']} is in two splits")
    return found


def _times(rows: list[Row]) -> tuple[dict[str, datetime], list[Quarantined]]:
    """The time of each study that has one, and an entry for each cell that is none."""
    times: dict[str, datetime] = {}
    damaged: list[Quarantined] = []
    for row in rows:
        if text := row.get("procedure_DATETIME"):
            try:
                times[row["impression_id"]] = datetime.fromisoformat(text).replace(tzinfo=None)
            except ValueError:
                error = ValueError(f"procedure_DATETIME is {text!r}; the study is kept without a time")
                damaged.append(row.refused(error, study_id=row["impression_id"]))
    return times, damaged


def _file(row: Row) -> FileRef:
    image_id = row.filled("image_id").removesuffix(".nii.gz")
    return FileRef(image_id=image_id, path=f"CTPA/{image_id}.nii.gz")


def _report(impression: str) -> Report:
    return Report(text=f"IMPRESSION: {impression}" if impression else "", impression=impression)


def _labels(row: Row) -> Mapping[str, int]:
    """The labels that say yes or no; times and their censoring are none. Raises ValueError naming a bad cell."""
    labels: dict[str, int] = {}
    for name, value in row.cells.items():
        if not _LABEL.fullmatch(name) or value in _NO_VALUE:
            continue
        if value not in _VALUES:
            raise ValueError(f"label {name} is {value!r}; known are {', '.join((*_VALUES, 'Censored'))}")
        labels[name] = _VALUES[value]
    return labels
