"""A lake: studies as Parquet on a local disk or an object store.

::

    <lake>/lake.json                            what is in it; the only file whose name is fixed
    <lake>/data/<generation>/part-00000.parquet     studies; every row group holds one split
    <lake>/data/<generation>/quarantine.parquet     study_id, file, stage, reason

A lake is replaced as a whole: a new generation is written beside the old one, ``lake.json`` is switched to it
last, and the old generation is removed after. Whoever opens the lake sees one of the two, never a mixture; an
interrupted write leaves the old lake in force and debris that the next commit clears.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from rayzero.config import nearest
from rayzero.storage import make_parent, open_url, whole_file, write_whole
from rayzero.studies.counts import count, empty_counts
from rayzero.studies.errors import LakeError
from rayzero.studies.study import SCHEMA, SCHEMA_VERSION, Study, from_row, to_row, to_table

GROUP_STUDIES = 32
GROUP_BYTES = 64 * 2**20
"""A row group closes at this many studies or bytes of pixels, whichever comes first: what a reader holds at once."""

MAX_STUDY_BYTES = 2**31 - 2**16
"""Pixels that a study may hold: Parquet keeps all the images of a study in one page, and a page below 2 GiB."""

_OPEN_GROUPS = 16  # waits on a store overlap
T = TypeVar("T")

_QUARANTINE = pa.schema([(name, pa.string()) for name in ("study_id", "file", "stage", "reason")])


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A file, table row or whole study (``file`` empty) that did not enter the lake, and why."""

    study_id: str
    file: str
    stage: str
    reason: str


@dataclass(frozen=True)
class RowGroup:
    """One readable unit: ``num_rows`` studies of one split, row group ``index`` of the file at ``path`` (URL)."""

    path: str
    index: int
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one written file holds: its name, its row groups as (split, studies), its counts, a digest per study."""

    name: str
    groups: tuple[tuple[str, int], ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    digests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lake:
    """A lake opened for reading. ``counts`` is {kind: {name: number}}, see ``rayzero.studies.counts``."""

    url: str
    generation: str
    fingerprint: str
    counts: Mapping[str, Mapping[str, int]]
    parts: tuple[Part, ...] = field(repr=False)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold at least one study."""
        return tuple(sorted(self.counts["split"]))

    def row_groups(self, splits: Sequence[str] | None = None) -> list[RowGroup]:
        """The row groups of ``splits`` (all when None) in a fixed order. Raises LakeError for an absent split."""
        for split in splits or ():
            if split not in self.splits:
                raise LakeError(f"the lake at {self.url} has no split {split!r}; {nearest(split, self.splits)}")
        folder = generation_url(self.url, self.generation)
        return [
            RowGroup(f"{folder}/{part.name}", index, rows)
            for part in self.parts
            for index, (split, rows) in enumerate(part.groups)
            if splits is None or split in splits
        ]

    def read(self, *, splits: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> Iterator[Study]:
        """Studies in a fixed order, one row group in memory at a time; columns left out take their defaults.

        ``columns`` always includes the four identifying columns, which a Study cannot be without.
        """
        for group in self.row_groups(splits):
            yield from read_row_group(group, columns=columns)

    def quarantine(self) -> list[Quarantined]:
        """Everything that did not enter the lake. Raises LakeError when it was rewritten meanwhile."""
        url = f"{generation_url(self.url, self.generation)}/quarantine.parquet"
        try:
            with fsspec.open(url, "rb") as file:
                return [Quarantined(**row) for row in pq.read_table(file).to_pylist()]
        except FileNotFoundError:
            raise LakeError(f"{url} is gone: the lake was rewritten meanwhile; open it again") from None


def open_lake(url: str) -> Lake:
    """The lake at ``url``, a folder or any fsspec URL. Raises LakeError when there is none, or it is not readable."""
    root = normal_url(url)
    try:
        with fsspec.open(f"{root}/lake.json", "rb") as file:
            card: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        raise LakeError(f"no lake at {url}; write one with: python -m jobs.ingest --lake {url} ...") from None
    except ValueError as error:
        raise LakeError(f"{url}/lake.json is damaged ({error}); write the lake again with jobs.ingest") from None
    except OSError as error:
        raise LakeError(f"cannot read {url}/lake.json: {error}") from error
    found = card.get("schema_version")
    if found != SCHEMA_VERSION:
        raise LakeError(
            f"the lake at {url} has schema version {found}, this release reads {SCHEMA_VERSION}; "
            "write it again with jobs.ingest"
        )
    parts = tuple(Part(name=p["name"], groups=tuple((s, n) for s, n in p["groups"])) for p in card["parts"])
    return Lake(root, card["generation"], card["fingerprint"], card["counts"], parts)


def read_row_group(group: RowGroup, *, columns: Sequence[str] | None = None) -> Iterator[Study]:
    """The studies of one row group, each built as it is asked for."""
    table = read_row_group_table(group, columns=columns)
    for index in range(table.num_rows):
        yield from_row(table.slice(index, 1).to_pylist(maps_as_pydicts="strict")[0])


def read_row_group_table(group: RowGroup, *, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group as an Arrow table of ``columns`` (all when None), identifying columns included."""
    wanted = None
    if columns is not None:
        for name in columns:
            if name not in SCHEMA.names:
                raise LakeError(f"a study has no column {name!r}; {nearest(name, SCHEMA.names)}")
        wanted = [n for n in SCHEMA.names if n in {*columns, "study_id", "patient_id", "corpus", "split"}]
    return read_parquet_group(group, wanted)


def read_parquet_group(group: RowGroup, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group by Parquet column paths, such as ``images.list.element.view`` to leave pixels unread."""
    try:
        with fsspec.open(group.path, "rb") as file:
            return pq.ParquetFile(file).read_row_group(group.index, columns=columns)
    except FileNotFoundError:
        raise LakeError(f"{group.path} is gone: the lake was rewritten meanwhile; open it again") from None
    except pa.ArrowInvalid as error:
        raise LakeError(f"{group.path} is damaged ({error}); write the lake again with jobs.ingest") from None


def each_group(groups: Iterable[RowGroup], function: Callable[[RowGroup], T]) -> list[T]:
    """``function`` of each row group, in order; several are read at a time, for a store answers each after a while."""
    with ThreadPoolExecutor(_OPEN_GROUPS) as pool:
        return list(pool.map(function, groups))


def write_lake(url: str, studies: Iterable[Study], quarantined: Iterable[Quarantined] = ()) -> Lake:
    """Write all ``studies`` as the lake at ``url``, in one process; jobs.ingest does the same on a cluster."""
    root, generation = normal_url(url), new_generation()
    parts = [write_part(root, generation, "part-00000.parquet", studies)]
    return commit_lake(root, generation, parts, quarantined)


def new_generation() -> str:
    """A name for a new generation: the time, for the reader of a listing, and a random tail."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def write_part(url: str, generation: str, name: str, studies: Iterable[Study]) -> Part:
    """Write ``studies`` to one file, a row group at a time, so that memory stays near ``GROUP_BYTES``.

    Nothing reads the file before ``commit_lake`` names it. Raises LakeError when the lake cannot be written.
    """
    counts = empty_counts()
    groups: list[tuple[str, int]] = []
    digests: list[str] = []
    fs, path = open_url(f"{generation_url(url, generation)}/{name}")
    try:
        make_parent(fs, path)
        with (
            whole_file(fs, path) as file,
            # Pixels neither repeat nor compare: dictionaries and statistics over them would only cost time.
            pq.ParquetWriter(file, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False) as writer,
        ):
            for batch in _batches(studies):
                try:
                    writer.write_table(to_table(batch))
                except (OSError, pa.ArrowException) as error:
                    raise LakeError(f"cannot write {path} at {_named(batch)}: {error}") from error
                groups.append((batch[0].split, len(batch)))
                digests.extend(_digest(study) for study in batch)
                for study in batch:
                    count(counts, study)
    except OSError as error:
        raise LakeError(f"cannot write {path}: {error}") from error
    plain = {kind: dict(sorted(values.items())) for kind, values in counts.items()}
    return Part(name=name, groups=tuple(groups), counts=plain, digests=tuple(digests))


def commit_lake(
    url: str, generation: str, parts: Iterable[Part], quarantined: Iterable[Quarantined], *, beside: Iterable[str] = ()
) -> Lake:
    """Make the written ``parts`` the lake at ``url``, replacing the one before.

    ``beside`` names further files of the generation that belong to the lake. Raises LakeError when the lake cannot be
    written, and before anything is replaced when the file of a part is gone.
    """
    parts = list(parts)
    counts = empty_counts()
    for part in parts:
        for kind, values in part.counts.items():
            counts[kind].update(values)
    rows = [asdict(item) for item in quarantined]
    card = {
        "schema_version": SCHEMA_VERSION,
        "generation": generation,
        "fingerprint": _fingerprint(digest for part in parts for digest in part.digests),
        "counts": {kind: dict(sorted(values.items())) for kind, values in counts.items()},
        "quarantined": len(rows),
        "parts": [{"name": part.name, "groups": part.groups} for part in parts if part.groups],
    }
    root = normal_url(url)
    try:
        # Another job that was committed here meanwhile has cleared this generation away.
        gone = sorted({part.name for part in parts} - stored_files(root, generation))
        if gone:
            raise LakeError(
                f"the lake at {url} was not replaced: {len(gone)} of the {len(parts)} new parts are gone, the first "
                f"{gone[0]}; another job wrote there meanwhile, run this again"
            )
        with fsspec.open(f"{generation_url(root, generation)}/quarantine.parquet", "wb", auto_mkdir=True) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=_QUARANTINE), file)
        replace_file(f"{root}/lake.json", json.dumps(card).encode())
        _remove_debris(root, generation, {"quarantine.parquet", *beside, *(part.name for part in parts)})
    except OSError as error:
        raise LakeError(f"cannot write the lake at {url}: {error}") from error
    return open_lake(root)


def normal_url(url: str) -> str:
    """``url`` made absolute, so that a worker in another directory means the same place."""
    fs, path = open_url(url)
    return str(fs.unstrip_protocol(path)).rstrip("/")


def generation_url(url: str, generation: str) -> str:
    """The folder of one generation's files."""
    return f"{url}/data/{generation}"


def stored_files(url: str, generation: str) -> set[str]:
    """The names of the files of one generation that are there and not empty, by one listing."""
    fs, folder = open_url(generation_url(url, generation))
    fs.invalidate_cache()
    try:
        found = fs.ls(folder, detail=True)
    except FileNotFoundError:
        return set()
    return {str(item["name"]).rsplit("/", 1)[-1] for item in found if item["type"] == "file" and item["size"]}


def _batches(studies: Iterable[Study]) -> Iterator[list[Study]]:
    """``studies`` cut into row groups: one split each, bounded in number and in bytes."""
    batch: list[Study] = []
    size = 0
    for study in studies:
        weight = sum(len(image.pixels) for image in study.images)
        full = len(batch) == GROUP_STUDIES or size + weight > GROUP_BYTES
        if batch and (full or study.split != batch[0].split):
            yield batch
            batch, size = [], 0
        batch.append(study)
        size += weight
    if batch:
        yield batch


def _named(batch: Sequence[Study]) -> str:
    """The studies of a row group, for a message."""
    first, last = batch[0].study_id, batch[-1].study_id
    return f"study {first}" if len(batch) == 1 else f"studies {first} to {last}"


_SINGLE = ("spacing_mm", "window", "curve", "box")


def _digest(study: Study) -> str:
    """Identity of all that a study holds, pixels by their checksums; images and labels in whatever order."""
    row = to_row(study)
    row["images"] = sorted((_stored(image) for image in row["images"]), key=lambda image: str(image["image_id"]))
    row["regions"] = [_stored(region) for region in row["regions"]]
    row["labels"] = {name: int(value) for name, value in study.labels.items()}
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()


def _stored(fields: Mapping[str, Any]) -> dict[str, Any]:
    """An image or a region as it will be read back, without pixels: ``SCHEMA`` keeps numbers in single precision."""
    return {
        name: np.float32(value).tolist() if name in _SINGLE and value else value
        for name, value in fields.items()
        if name != "pixels"
    }


def _fingerprint(digests: Iterable[str]) -> str:
    """The same for equal studies, however they were cut into parts."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def replace_file(url: str, data: bytes) -> None:
    """Put ``data`` at ``url`` in one step, whoever else does so at the same time; its folder is made."""
    fs, path = open_url(url)
    make_parent(fs, path)
    write_whole(fs, path, data)


def _remove_debris(root: str, generation: str, names: set[str]) -> None:
    """Remove the other generations, and what interrupted writes left in this one."""
    fs, folder = open_url(f"{root}/data")
    fs.invalidate_cache()
    for path in _entries(fs, folder):
        if path.rsplit("/", 1)[-1] != generation:
            fs.rm(path, recursive=True)
    for path in _entries(fs, f"{folder}/{generation}"):
        if path.rsplit("/", 1)[-1] not in names:
            fs.rm_file(path)


def _entries(fs: AbstractFileSystem, folder: str) -> list[str]:
    """What ``folder`` holds. Some tools mark a folder of a store by an empty object of its name: it is none of it."""
    paths = (str(path).rstrip("/") for path in fs.ls(folder, detail=False))
    return [path for path in paths if path != folder.rstrip("/")]
