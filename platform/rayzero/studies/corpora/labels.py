"""Labels of closed lists, split assignments, and what came before what."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from rayzero.studies.corpora.tables import existing, read_rows
from rayzero.studies.errors import CorpusError
from rayzero.studies.study import Split

SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "test": "test"}
SPLIT_TABLE = "splits.csv"


class Closed(Mapping[str, int]):
    """Labels over a closed list: 1 for the findings named, 0 for every other one.

    ``zeros`` is that list as ``dict.fromkeys(classes, 0)``, shared by all studies: a plan holds 10^5 of them.
    """

    __slots__ = ("_positive", "_zeros")

    def __init__(self, zeros: Mapping[str, int], positive: Iterable[str]) -> None:
        """Raises ValueError for a positive that the list lacks."""
        self._zeros = zeros
        self._positive = frozenset(positive)
        for name in self._positive:
            if name not in zeros:
                raise ValueError(f"label {name!r} is not one of the {len(zeros)} of this corpus")

    def __getitem__(self, name: str) -> int:
        return 1 if name in self._positive else self._zeros[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._zeros)

    def __len__(self) -> int:
        return len(self._zeros)


def own_split(patient_id: str) -> Split:
    """A split for a corpus that publishes none: 70 % train, 15 % validation, 15 % test of the patients.

    A function of the id alone: the same on every machine, and never apart for two images of one patient.
    """
    part = int.from_bytes(hashlib.sha256(patient_id.encode()).digest()[:8], "big") / 2**64
    return "train" if part < 0.70 else "validation" if part < 0.85 else "test"


class Splits:
    """The split of a study: of ``splits.csv`` (study_id, split) under the root, or else by ``default``."""

    def __init__(self, root: str, default: Split | None = None) -> None:
        """``default`` None assigns by ``own_split``. Raises CorpusError for an unknown split or a study given twice."""
        self._default = default
        self._given: dict[str, Split] | None = None
        if existing(root, [SPLIT_TABLE]):
            self._given = {}
            for row in read_rows(root, SPLIT_TABLE, ("study_id", "split")):
                try:
                    split = row.one_of("split", SPLITS)
                except ValueError as error:
                    raise CorpusError(f"{SPLIT_TABLE}, row {row.number}: {error}") from None
                if self._given.setdefault(row["study_id"], split) != split:
                    raise CorpusError(f"{SPLIT_TABLE}, row {row.number}: study {row['study_id']} is in two splits")

    def of(self, study_id: str, patient_id: str) -> Split:
        """The split. Raises ValueError for a study that ``splits.csv`` leaves out."""
        if self._given is None:
            return self._default or own_split(patient_id)
        if study_id not in self._given:
            raise ValueError(f"{SPLIT_TABLE} does not list the study")
        return self._given[study_id]


def link_priors(order: Mapping[str, tuple[str, Any]]) -> dict[str, str]:
    """The prior study of each study that has one, from {study_id: (patient_id, when)}.

    The prior is the patient's latest study that is strictly earlier: of two at one time neither precedes the other.
    """
    patients: dict[str, list[tuple[Any, str]]] = defaultdict(list)
    for study_id, (patient, when) in order.items():
        patients[patient].append((when, study_id))
    prior: dict[str, str] = {}
    for studies in patients.values():
        before = ""
        for _, same in groupby(sorted(studies), key=lambda item: item[0]):
            together = [study_id for _, study_id in same]
            if before:
                prior.update(dict.fromkeys(together, before))
            before = together[-1]
    return prior
