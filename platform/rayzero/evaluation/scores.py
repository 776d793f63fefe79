"""Score tables that others computed, under a protocol: rows are joined to labels by id, columns to classes by name.

Published tables often have no ids and number their columns; ``images`` lists the files in the order of their rows
then. Whether that order is right cannot be read off the scores themselves, but rows of one patient are alike: where
enough patients have several images, an order in which they are not is refused.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from scipy.special import logit

from rayzero.config import EvaluationConfig
from rayzero.evaluation import measures
from rayzero.evaluation.benchmark import Benchmark, Target, label_digest
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.metrics.bootstrap import Float
from rayzero.evaluation.records import ImageScores
from rayzero.evaluation.result import EvaluationResult
from rayzero.evaluation.truth import Truth
from rayzero.storage import open_url
from rayzero.studies.study import Study

_IDS = ("VolumeName", "Path", "image_id", "Image Index", "study_id", "Study", "dicom_id", "id", "NoteAcc_DEID")
_MEASURED = (measures.areas, measures.answers, measures.top_labels, measures.accuracy, measures.folds)
_SUFFIXES = (".gz", ".nii", ".npz", ".png", ".jpg", ".jpeg", ".dcm", ".dicom")
_CHEXPERT = re.compile(r"(patient\d+/study\d+(?:/view[^/.]+)?)")
_PATIENT = re.compile(r"(?:train|valid)_\d+(?=_)|patient\d+|\d{8}(?=_\d{3}$)")
_LABELS = {"1": 1, "0": 0, "-1": -1, "1.0": 1, "0.0": 0, "-1.0": -1, "true": 1, "false": 0}
_PAIRS = 10
_PERMUTATIONS = 200
_LEVEL = 0.05
# A probability of 0 or 1 as a logit that is finite.
_CERTAIN = 1e-15


@dataclass(frozen=True)
class Table:
    """A CSV file: the id of each row (None without a column of ids), column names, cells by column."""

    where: str
    ids: list[str] | None
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), self.ids or []))


def read_table(url: str) -> Table:
    """The CSV file at ``url``. Raises EvaluationError when it is missing, ragged, or has an id twice."""
    fs, path = open_url(url)
    try:
        text = fs.cat_file(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{url} cannot be read: {error}") from None
    # Not splitlines(): a sentence within quotes may hold the end of a line.
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    if len(rows) < 2:
        raise EvaluationError(f"{url} has no rows below its header")
    header = [cell.strip() for cell in rows[0]]
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise EvaluationError(f"{url}, row {number}: {len(row)} cells, the header has {len(header)}")
    columns = {name: [row[place].strip() for row in rows[1:]] for place, name in enumerate(header) if name}
    if len(columns) != len([name for name in header if name]):
        raise EvaluationError(f"{url} has a column name twice")
    key = next((name for name in _IDS if name in columns), None)
    ids = [identify(cell) for cell in columns.pop(key)] if key else None
    if ids and len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise EvaluationError(f"{url} lists {twice!r} more than once")
    return Table(url, ids, columns)


def identify(name: str) -> str:
    """The id in a path or file name: CheXpert's from the patient on, otherwise the file's name without suffixes."""
    if found := _CHEXPERT.search(name):
        return found[1]
    stem = PurePosixPath(name.strip()).name
    while stem.lower().endswith(_SUFFIXES):
        stem = stem[: stem.rindex(".")]
    return stem


def patient_of(image_id: str) -> str:
    """The patient that an id of CT-RATE, CheXpert or ChestX-ray14 names; for other ids, the id itself."""
    found = _PATIENT.search(image_id)
    return found[0] if found else image_id


def read_labels(url: str, targets: Sequence[Target], *, blank: int | None = None) -> dict[str, dict[str, int]]:
    """Labels by id of a table whose columns are joined to the targets by name, in whatever order they stand.

    ``blank`` is what an empty cell says; None leaves it without label. Raises EvaluationError for a class without a
    column, and for a cell that is no label.
    """
    table = read_table(url)
    if table.ids is None:
        raise EvaluationError(f"{url} has no column of ids; one of {', '.join(_IDS)} is needed")
    columns = {_plain(name): cells for name, cells in table.columns.items()}
    found: dict[str, dict[str, int]] = {name: {} for name in table.ids}
    for target in targets:
        sources = next(
            (
                names
                for names in (target.sources, (target.name,), target.asked)
                if all(_plain(n) in columns for n in names)
            ),
            None,
        )
        if sources is None:
            raise EvaluationError(f"{url} has no column {target.name!r}; it has: {', '.join(table.columns)}")
        for row, name in enumerate(table.ids):
            cells = [columns[_plain(source)][row] for source in sources]
            values = [_label(cell, blank, f"{url}, row {row + 1}, {target.name}") for cell in cells]
            value = _any_of(values)
            if value is not None:
                found[name] |= dict.fromkeys(target.sources, value)
    return found


def _any_of(values: Sequence[int | None]) -> int | None:
    """1 where any is, 0 where all are, -1 where one is and the others are 0; None where a value is not known."""
    if 1 in values:
        return 1
    return None if None in values else -1 if -1 in values else 0


def evaluate_scores(
    benchmark: Benchmark,
    scores: str,
    labels: str,
    *,
    images: str | None = None,
    prompts: str | None = None,
    config: EvaluationConfig | None = None,
    system: str = "scores",
) -> EvaluationResult:
    """A benchmark's figures of a table of scores (rows of images, columns of classes) with a table of labels.

    ``images`` lists the rows' images where the scores have no ids, ``prompts`` is the JSON of prompts whose order
    numbers the columns. Raises EvaluationError for files that do not belong together: other or too few rows, an id
    twice, a class without a column, rows in another order than the list.
    """
    config = config or EvaluationConfig()
    kept = tuple(one for one in benchmark.measures if _function(one) in _MEASURED)
    if not kept or callable(benchmark.targets):
        raise EvaluationError(f"protocol {benchmark.name!r} is not measured by scores of classes alone; give a bundle")
    targets = benchmark.targets
    table = read_table(scores)
    ids, notes = _rows(table, images)
    truth = read_labels(labels, targets, blank=benchmark.blank_label)
    absent = [name for name in ids if name not in truth]
    unscored = truth.keys() - set(ids)
    if absent or unscored:
        example = absent[0] if absent else sorted(unscored)[0]
        raise EvaluationError(
            f"{scores} and {labels} are not of the same images: {len(absent)} scored ones have no label and "
            f"{len(unscored)} labelled ones no score, such as {example!r}"
        )
    values = _values(table, _names(table, benchmark, prompts), targets)
    if measures.folds in map(_function, kept) and (np.abs(values - 0.5) <= 0.5).all():
        values = logit(np.clip(values, _CERTAIN, 1 - _CERTAIN))
        notes.append("All scores lie between 0 and 1: they are taken to be probabilities, and not logits.")
    patients = [patient_of(name) for name in ids]
    if images is not None and table.ids is None:
        notes.append(_check_order(values, patients, scores, images))
    rows = [
        ImageScores(name, patient, name, (), logits, np.zeros(0, dtype=np.float32))
        for name, patient, logits in zip(ids, patients, values, strict=True)
    ]
    studies = {
        name: Study(study_id=name, patient_id=patient, corpus=benchmark.corpora[0], split="test", labels=truth[name])
        for name, patient in zip(ids, patients, strict=True)
    }
    asked = [(one.name, phrase) for one in targets for phrase in one.asked]
    narrowed = replace(benchmark, measures=kept, opposed=False, unit="image", quirks=(*benchmark.quirks, *notes))
    scored = narrowed.assemble(Truth(studies, labels), rows, targets, asked, None)
    # What two tables of scores have in common is the truth that they are judged by.
    where = labels, label_digest(truth), "scores"
    return narrowed.result(None, scored, None, config, where=where, prompts=(), system=system)


def _rows(table: Table, images: str | None) -> tuple[list[str], list[str]]:
    """The image of each row of scores, and what is to be said about it."""
    if table.ids is not None:
        return table.ids, ["Rows of scores were joined by their ids."]
    if images is None:
        raise EvaluationError(
            f"{table.where} has no column of ids; give the list of images that its rows are of with --images"
        )
    listed = read_table(images)
    if listed.ids is None:
        raise EvaluationError(f"{images} has no column of ids; one of {', '.join(_IDS)} is needed")
    if len(listed.ids) != len(table):
        raise EvaluationError(
            f"{table.where} has {len(table)} rows and {images} lists {len(listed.ids)} images: without ids in the "
            "scores, rows can only be joined when both are complete"
        )
    return listed.ids, []


def _names(table: Table, benchmark: Benchmark, prompts: str | None) -> dict[str, str]:
    """What each column of scores is of: its header's name, or the place in the prompts that its number gives."""
    header = list(table.columns)
    if not all(name.isdigit() for name in header):
        return {_plain(name): name for name in header}
    order = _prompt_order(prompts) if prompts else [*benchmark.score_columns]
    if sorted(map(int, header)) != list(range(len(order))):
        raise EvaluationError(
            f"{table.where} has {len(header)} numbered columns for the {len(order)} classes of "
            f"{prompts or 'protocol ' + repr(benchmark.name)}; give the prompts that it was scored with as --prompts"
        )
    return {_plain(order[int(name)]): name for name in header}


def _prompt_order(url: str) -> list[str]:
    values = read_json(url)
    if not isinstance(values, dict) or sorted(values, key=str) != sorted(map(str, range(len(values)))):
        raise EvaluationError(f"{url} is not prompts by column number, such as {{'0': ['There is edema']}}")
    texts = [values[str(place)] for place in range(len(values))]
    return [str(text[0] if isinstance(text, list) else text) for text in texts]


def read_json(url: str) -> Any:
    """The JSON file at ``url``. Raises EvaluationError."""
    fs, path = open_url(url)
    try:
        return json.loads(fs.cat_file(path))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{url} cannot be read as JSON: {error}") from None


def _values(table: Table, names: Mapping[str, str], targets: Sequence[Target]) -> Float:
    """Scores (N, phrases of all targets) as numbers."""
    columns = []
    for target in targets:
        for phrase in target.asked:
            key = next((k for k in (_plain(phrase), _plain(target.name)) if k in names), None)
            if key is None:
                raise EvaluationError(f"{table.where} has no column for {phrase!r}; it has: {', '.join(names)}")
            try:
                column = np.array([float(cell) for cell in table.columns[names[key]]])
            except ValueError as error:
                raise EvaluationError(f"{table.where}, column {names[key]!r}: {error}") from None
            if not np.isfinite(column).all():
                row = int(np.flatnonzero(~np.isfinite(column))[0]) + 1
                raise EvaluationError(f"{table.where}, row {row}, column {names[key]!r}: the score is not finite")
            columns.append(column)
    return np.stack(columns, axis=1)


def _check_order(values: Float, patients: Sequence[str], scores: str, images: str) -> str:
    """What is known of the rows' order. Raises EvaluationError when rows of one patient are not alike."""
    groups: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        groups.setdefault(patient, []).append(row)
    pairs = np.array([(one, other) for rows in groups.values() for one, other in itertools.pairwise(rows)])
    if len(pairs) < _PAIRS:
        return "Scores have no ids: their rows are taken to be in the order of the list of images, which is not tested."
    spread = values.std(axis=0)
    unit = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    rng = np.random.default_rng(0)

    def gap(order: np.ndarray[Any, Any]) -> float:
        return float(np.abs(unit[order[pairs[:, 0]]] - unit[order[pairs[:, 1]]]).mean())

    own = gap(np.arange(len(values)))
    others = [gap(rng.permutation(len(values))) for _ in range(_PERMUTATIONS)]
    p = (1 + sum(other <= own for other in others)) / (1 + len(others))
    if p > _LEVEL:
        raise EvaluationError(
            f"{scores} is not in the order of {images}: rows of one patient are no more alike than rows of different "
            f"patients ({len(pairs)} pairs, p = {p:.2f}); give the list in the order in which the scores were made"
        )
    return f"Rows of one patient are alike ({len(pairs)} pairs, p = {p:.3f}): the order of the list fits the scores."


def _function(measure: Any) -> Any:
    return measure.func if isinstance(measure, partial) else measure


def _label(cell: str, blank: int | None, where: str) -> int | None:
    if cell == "" or cell.lower() == "nan":
        return blank
    if cell.lower() not in _LABELS:
        raise EvaluationError(f"{where}: {cell!r} is no label; give 1, 0, -1, True or False")
    return _LABELS[cell.lower()]


def _plain(name: str) -> str:
    """A class name or prompt as it is compared: lower case, blanks for underscores, without "There is"."""
    text = " ".join(name.replace("_", " ").lower().split()).rstrip(".")
    return text.removeprefix("there is ")
