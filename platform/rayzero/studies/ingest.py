"""A corpus into a lake, as Ray tasks: each reads the files of some studies and writes them as one part.

Pixels go from the files to the lake inside one task; only counts travel back to the driver.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, cast

import ray

from rayzero.cluster import join
from rayzero.studies import leakage
from rayzero.studies.corpora import StudyRef, corpus, load, unique
from rayzero.studies.lake import Lake, Part, Quarantined, commit_lake, new_generation, normal_url, write_part
from rayzero.studies.study import Study

PART_STUDIES = 256
"""Studies in one file of the lake, at most: one task's work, and what is done again when a node is lost."""


@dataclass(frozen=True)
class Progress:
    """How far an ingest is: ``studies`` seen of ``total``, ``images`` written, ``seconds`` since the first task."""

    studies: int
    total: int
    images: int
    seconds: float


@dataclass(frozen=True)
class Ingested:
    """The lake that was written, what was refused, and the ``seconds`` that reading and writing took.

    ``excluded`` counts the studies that were left out for each evaluation set to keep apart.
    """

    lake: Lake
    quarantined: tuple[Quarantined, ...]
    seconds: float
    excluded: Mapping[str, int] = field(default_factory=dict)


def ingest(
    corpus_name: str,
    root: str,
    lake: str,
    *,
    limit: int | None = None,
    cpus: int | None = None,
    exclude: Sequence[str] = (),
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Ingested:
    """Write the studies of ``corpus_name`` under ``root`` as the lake at ``lake``, replacing what is there.

    ``limit`` takes the first so many studies. ``cpus`` bounds the tasks that run at once (default: all the CPUs of
    the cluster). ``exclude`` names evaluation sets whose patients stay out of train and validation, see
    ``leakage.exclude``. Ray is started when it is not running. Raises CorpusError or LakeError; the lake that was
    there stays in force until all is written.
    """
    root_url, lake_url, generation = normal_url(root), normal_url(lake), new_generation()
    refs, refused = plan(corpus_name, root_url, limit=limit)
    if not ray.is_initialized():
        join(cpus=cpus, log_to_driver=False)
    workers = cpus or max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    excluded: Mapping[str, int] = {}
    if exclude:
        refs, leaks, excluded = leakage.exclude(corpus_name, root_url, refs, exclude, workers=workers)
        refused += leaks
    chunks = list(chunked(refs, _part_size(len(refs), workers)))
    start = time.monotonic()
    parts: dict[int, Part] = {}
    seen = 0
    for index, part, entries in _run(chunks, root_url, lake_url, generation, workers):
        parts[index] = part
        refused += entries
        seen += len(chunks[index])
        images = sum(p.counts["total"].get("images", 0) for p in parts.values())
        on_progress(Progress(seen, len(refs), images, time.monotonic() - start))
    seconds = time.monotonic() - start
    written = commit_lake(lake_url, generation, [parts[index] for index in sorted(parts)], refused)
    return Ingested(written, tuple(refused), seconds, excluded)


def plan(corpus_name: str, root: str, *, limit: int | None = None) -> tuple[list[StudyRef], list[Quarantined]]:
    """The studies to read, ordered by split so that parts stay pure, and the table rows that are none."""
    refs: list[StudyRef] = []
    refused: list[Quarantined] = []
    for item in unique(corpus(corpus_name).studies(root)):
        (refs if isinstance(item, StudyRef) else refused).append(item)  # type: ignore[arg-type]
    return sorted(islice(refs, limit), key=lambda ref: ref.split), refused


def chunked(refs: Sequence[StudyRef], size: int) -> Iterator[list[StudyRef]]:
    """``refs`` in runs of one split and at most ``size``."""
    chunk: list[StudyRef] = []
    for ref in refs:
        if chunk and (len(chunk) == size or ref.split != chunk[0].split):
            yield chunk
            chunk = []
        chunk.append(ref)
    if chunk:
        yield chunk


def ingest_refs(
    refs: Iterable[StudyRef], *, root: str, lake: str, generation: str, name: str
) -> tuple[Part, list[Quarantined]]:
    """Read the files of ``refs`` and write them as the part ``name``: the unit of parallel work, free of Ray.

    Memory stays near one row group. Running it again writes the same file again.
    """
    refused: list[Quarantined] = []

    def studies() -> Iterator[Study]:
        for ref in refs:
            study, entries = load(ref, root)
            refused.extend(entries)
            if study is not None:
                yield study

    part = write_part(lake, generation, name, studies())
    return part, refused


def _part_size(total: int, workers: int) -> int:
    """Large parts, yet four or more for each worker where that leaves a row group's worth in each."""
    return min(PART_STUDIES, max(32, math.ceil(total / (4 * workers))))


def _run(
    chunks: Sequence[list[StudyRef]], root: str, lake: str, generation: str, workers: int
) -> Iterator[tuple[int, Part, list[Quarantined]]]:
    """Results as they come; no more than ``workers`` tasks are in flight, so the driver's memory stays flat."""
    task = ray.remote(cast(Any, ingest_refs))  # Ray's types know no keyword-only arguments
    waiting = iter(enumerate(chunks))
    running: dict[ray.ObjectRef[tuple[Part, list[Quarantined]]], int] = {}

    def submit(count: int) -> None:
        for index, chunk in islice(waiting, count):
            name = f"part-{index:05d}.parquet"
            running[task.remote(chunk, root=root, lake=lake, generation=generation, name=name)] = index

    submit(workers)
    try:
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            index = running.pop(done)
            part, refused = ray.get(done)
            submit(1)
            yield index, replace(part, counts={kind: dict(values) for kind, values in part.counts.items()}), refused
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
