"""CheXpert 5x200 and 8x200: single-finding images of CheXpert's train split (datasets spec, 4).

``chexpert_5x200.csv``, or the folder ``image-retrieval`` with ``query.csv`` and ``candidate.csv``, lies in the root
of CheXpert. Every image is a study of its own: two of a list may be of one study. The 5x200 were drawn without a
seed, so lists of that name differ: the fingerprint of the lake tells them apart. All these images are in CheXpert's
train split: ingest CheXpert (Plus) with ``--exclude`` and this lake before pretraining on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.chexpert import image_file, split_path
from rayzero.studies.corpora.labels import Closed
from rayzero.studies.corpora.tables import Row, read_rows
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Report

FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
EIGHT = (
    "Atelectasis", "Cardiomegaly", "Edema", "Fracture", "No Finding", "Pleural Effusion", "Pneumonia", "Pneumothorax",
)  # fmt: skip
_FIVE_ZEROS, _EIGHT_ZEROS = dict.fromkeys(FIVE, 0), dict.fromkeys(EIGHT, 0)


class CheXpert5x200:
    """Image-report pairs of five findings, 200 each; study ids are image ids."""

    name = "chexpert-5x200"
    _TABLE = "chexpert_5x200.csv"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``. Raises CorpusError when the findings are not equally many."""
        required = ("Path", "Frontal/Lateral", *FIVE, "Report Impression")
        refs: list[StudyRef] = []
        for row in read_rows(root, self._TABLE, required, optional=()):
            try:
                patient, _, file = image_file(row)
                impression = row["Report Impression"]
                refs.append(
                    StudyRef(
                        study_id=file.image_id,
                        patient_id=patient,
                        corpus=self.name,
                        split="test",
                        files=(file,),
                        report=Report(text=impression, impression=impression),
                        labels=Closed(_FIVE_ZEROS, [_only_positive(row, FIVE)]),
                    )
                )
            except ValueError as error:
                yield row.refused(error)
        _check_balance(self._TABLE, FIVE, [name for ref in refs for name, value in ref.labels.items() if value])
        yield from refs


class CheXpert8x200:
    """Query and candidate images of eight findings; study ids are ``query/...`` and ``candidate/...``."""

    name = "chexpert-8x200"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``. Raises CorpusError when the candidates' findings are not equally many."""
        for role in ("query", "candidate"):
            table = f"image-retrieval/{role}.csv"
            findings: list[str] = []
            for row in read_rows(root, table, ("Path",)):
                try:
                    ref = self._ref(row, role)
                except ValueError as error:
                    yield row.refused(error)
                    continue
                findings += [name for name, value in ref.labels.items() if value]
                yield ref
            _check_balance(table, EIGHT, findings)

    def _ref(self, row: Row, role: str) -> StudyRef:
        folder, patient, _, image_id = split_path(row["Path"])
        finding = row["Variable"] if "Variable" in row.cells else _only_positive(row, EIGHT)
        path = f"{folder}/{PurePosixPath(row['Path']).name}"
        return StudyRef(
            study_id=f"{role}/{image_id}",
            patient_id=patient,
            corpus=self.name,
            split="test",
            files=(FileRef(image_id=image_id, path=path, view="frontal"),),
            labels=Closed(_EIGHT_ZEROS, [finding]),
        )


def _only_positive(row: Row, classes: Sequence[str]) -> str:
    """The one of ``classes`` that is 1. Raises ValueError when none or several are."""
    absent = [name for name in classes if name not in row.cells]
    if absent:
        raise ValueError(f"the table has neither a column Variable nor the columns {', '.join(absent)}")
    positive = [name for name, value in row.labels(classes).items() if value == 1]
    if len(positive) != 1:
        raise ValueError(f"{len(positive)} of {', '.join(classes)} are positive; one is needed")
    return positive[0]


def _check_balance(table: str, classes: Sequence[str], findings: Sequence[str]) -> None:
    counts = Counter(findings)
    if len({counts[name] for name in classes}) != 1:
        listed = ", ".join(f"{name} {counts[name]}" for name in classes)
        raise CorpusError(
            f"{table}: the findings must be equally many, for precision at k has no fixed chance: {listed}"
        )
