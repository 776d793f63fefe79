"""Published tables as rows of text: plain, gzipped or zipped CSV or TSV, read once and held as Arrow columns.

Cells are text, stripped and "" when blank: whether ``00012`` is a number is the corpus's business.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from rayzero.storage import open_url
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined

_SLICE = 8192
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table. ``number`` counts data rows from 1."""

    table: str
    number: int
    cells: Mapping[str, str]

    def __getitem__(self, field: str) -> str:
        return self.cells[field]

    def get(self, field: str) -> str:
        """The cell, or "" when the table has no such column."""
        return self.cells.get(field, "")

    def filled(self, field: str) -> str:
        """The cell. Raises ValueError when it is blank."""
        if not self.cells[field]:
            raise ValueError(f"{field} is blank")
        return self.cells[field]

    def integer(self, field: str) -> int:
        """The cell as a whole number; ``3.0`` is one. Raises ValueError naming the field."""
        value = self.real(field)
        if not value.is_integer():
            raise ValueError(f"{field} is {self.cells[field]!r}; a whole number is needed")
        return int(value)

    def real(self, field: str) -> float:
        """The cell as a finite number. Raises ValueError naming the field."""
        try:
            value = float(self.cells[field])
        except ValueError:
            value = float("nan")
        if not abs(value) < float("inf"):
            raise ValueError(f"{field} is {self.cells[field]!r}; a number is needed")
        return value

    def one_of(self, field: str, choices: Mapping[str, T]) -> T:
        """What the cell stands for. Raises ValueError naming the field and the values that are known."""
        if self.cells[field] not in choices:
            raise ValueError(f"{field} is {self.cells[field]!r}; known are {', '.join(map(repr, choices))}")
        return choices[self.cells[field]]

    def labels(self, fields: Sequence[str]) -> dict[str, int]:
        """The cells of ``fields`` as labels 1, 0, -1; blank ones are left out. Raises ValueError naming the field."""
        return {name: _LABELS[self.cells[name]] if self.cells[name] in _LABELS else self._bad_label(name)
                for name in fields if self.cells[name]}  # fmt: skip

    def refused(self, error: ValueError, *, study_id: str = "") -> Quarantined:
        """The quarantine entry of this row. Its place is in ``file``, so that equal reasons count as one."""
        return Quarantined(study_id=study_id, file=f"{self.table}, row {self.number}", stage="table", reason=str(error))

    def _bad_label(self, name: str) -> int:
        raise ValueError(f"label {name} is {self.cells[name]!r}; give 1, 0 or -1")


_LABELS = {"1": 1, "0": 0, "-1": -1, "1.0": 1, "0.0": 0, "-1.0": -1}


def read_rows(root: str, name: str, required: Sequence[str], *, optional: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of the CSV file ``name`` (also ``.gz``, ``.zip``) under ``root``; of a ``.tsv`` tabs part the cells.

    Cells of ``required`` and of those of ``optional`` that exist (all columns when None). Blanks around column
    names are dropped. Raises CorpusError at once when the file is missing, not UTF-8, lacks a column, or has a row
    with more or fewer cells than the header.
    """
    data = _read(root, name)
    header, body = _header(data, name)
    missing = [column for column in required if column not in header]
    if missing:
        raise CorpusError(f"{name} lacks the column(s) {', '.join(missing)}; it has: {', '.join(filter(None, header))}")
    wanted = [c for c in header if c and (optional is None or c in required or c in optional)]
    twice = [column for column in wanted if header.count(column) > 1]
    if twice:
        raise CorpusError(f"{name} has the column {twice[0]} more than once")
    names = [column or f" {index}" for index, column in enumerate(header)]  # unnamed columns need distinct names
    table = _parse(body, name, names, wanted)
    return _rows(table, name)


def read_text(root: str, name: str) -> str:
    """The UTF-8 file ``name`` under ``root`` (a BOM is dropped). Raises CorpusError."""
    return _text(_read(root, name), name)


def read_json(root: str, name: str) -> Any:
    """The JSON file ``name`` under ``root``; see ``parse_json``. Raises CorpusError."""
    return parse_json(read_text(root, name), name)


def parse_json(text: str, where: str) -> Any:
    """``text`` as JSON; the bare NaN that pandas writes for a blank cell reads as null. Raises CorpusError."""
    try:
        return json.loads(text, parse_constant=lambda constant: None)
    except ValueError as error:
        raise CorpusError(f"{where} is not JSON: {error}") from None


def existing(root: str, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that are files under ``root``. Raises CorpusError when the folder does not exist."""
    fs, base = open_url(root)
    if not fs.exists(base):
        raise CorpusError(f"no corpus at {root}: the folder does not exist")
    return [name for name in names if fs.exists(f"{base}/{name}")]


def one_of_files(root: str, names: Sequence[str], what: str) -> str:
    """The one of ``names`` that is under ``root``. Raises CorpusError when none is, or more than one."""
    found = existing(root, names)
    if len(found) != 1:
        have = f"both {' and '.join(found)}; keep one" if found else f"none of {', '.join(names)}"
        raise CorpusError(f"{root} holds {have} ({what})")
    return found[0]


def find_files(root: str, suffixes: Sequence[str], *, key: Callable[[str], str]) -> dict[str, str]:
    """Relative paths of the files under ``root`` with one of ``suffixes``, by ``key`` of the path.

    For corpora whose copies differ in folders and not in file names. Raises CorpusError when two share a key.
    """
    fs, base = open_url(root)
    base = base.rstrip("/")
    found: dict[str, str] = {}
    for full in fs.find(base):
        path = str(full)[len(base) + 1 :]
        if path.lower().endswith(tuple(suffixes)):
            other = found.setdefault(key(path), path)
            if other != path:
                raise CorpusError(f"{other} and {path} are two files of one image; keep one under {root}")
    return found


def _read(root: str, name: str) -> bytes:
    fs, base = open_url(root)
    if not fs.exists(base):
        raise CorpusError(f"no corpus at {root}: the folder does not exist")
    try:
        with fsspec.open(fs.unstrip_protocol(f"{base}/{name}"), "rb", compression="infer") as file:
            data: bytes = file.read()
    except FileNotFoundError:
        raise CorpusError(f"{root} holds no {name}; is it the root of this corpus?") from None
    except (OSError, EOFError) as error:  # gzip raises both on a file that is cut short
        raise CorpusError(f"{name} cannot be read: {error}") from None
    return data


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{name} cannot be read as UTF-8 text: {error}") from None


def _header(data: bytes, name: str) -> tuple[list[str], bytes]:
    """The column names, stripped, and the bytes below them."""
    line, _, body = data.partition(b"\n")
    try:
        cells = next(csv.reader([_text(line, name).rstrip("\r")], strict=True, delimiter=_delimiter(name)), [])
    except csv.Error:
        cells = []
    names = [cell.strip() for cell in cells]
    if not any(names):
        raise CorpusError(f"{name} does not begin with a row of column names")
    return names, body


def _parse(body: bytes, name: str, names: Sequence[str], wanted: Sequence[str]) -> pa.Table:
    if not body.strip():
        return pa.table({column: pa.array([], pa.string()) for column in wanted})
    bad: list[Any] = []

    def note(row: Any) -> str:
        bad.append(row)
        return "error"

    try:
        table = arrow_csv.read_csv(
            io.BytesIO(body),
            read_options=arrow_csv.ReadOptions(column_names=list(names), use_threads=False),
            parse_options=arrow_csv.ParseOptions(
                delimiter=_delimiter(name), newlines_in_values=True, invalid_row_handler=note
            ),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(wanted), column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        if bad:
            row = bad[0]
            place = f"row {row.number}" if row.number is not None else f"the row {row.text[:60]!r}"
            raise CorpusError(
                f"{name}, {place}: {row.actual_columns} cells, the header has {row.expected_columns}"
            ) from None
        if "UTF8" in str(error):
            raise CorpusError(f"{name} cannot be read as UTF-8 text: {error}") from None
        raise CorpusError(f"{name} is not a readable CSV table: {error}") from None
    columns = [pc.utf8_trim_whitespace(table.column(column)) for column in wanted]
    return pa.table(columns, names=list(wanted))


def _delimiter(name: str) -> str:
    return "\t" if ".tsv" in name else ","


def _rows(table: pa.Table, name: str) -> Iterator[Row]:
    for start in range(0, table.num_rows, _SLICE):
        for number, cells in enumerate(table.slice(start, _SLICE).to_pylist(), start=start + 1):
            yield Row(name, number, cells)
