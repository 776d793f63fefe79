"""A corpus into a lake, as Ray tasks: each reads the files of some studies and writes them as one part.

Pixels go from the files to the lake inside one task; only counts travel back to the driver. How the studies are cut
into parts depends on the studies alone, and each part is entered in a journal when it is complete. So an ingest that
was killed is continued by asking for it again, on any number of machines, and ends with the lake that it would have
written undisturbed.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from itertools import islice

import ray

from rayzero import __version__
from rayzero.cluster import join
from rayzero.studies import leakage
from rayzero.studies.corpora import StudyRef, corpus, load, unique
from rayzero.studies.errors import CorpusError
from rayzero.studies.journal import Journal
from rayzero.studies.lake import Lake, Part, Quarantined, commit_lake, normal_url, write_part
from rayzero.studies.study import SCHEMA_VERSION, Study
from rayzero.studies.tasks import mapped

PART_STUDIES = 256
"""Studies in one file of the lake, at most: one task's work, and what is done again when a node is lost."""

_READ_AHEAD = 4  # studies that a task fetches while it decodes and writes another: hides the latency of a store
_VOLUMES_AHEAD = 1  # the same where one of them holds a volume, which may take gigabytes


@dataclass(frozen=True)
class Progress:
    """How far an ingest is: ``studies`` seen of ``total``, ``images`` written, ``quarantined`` entries so far.

    ``resumed_studies`` and ``resumed_images`` of these were there from before an interruption; ``seconds`` counts
    from the first task of this run.
    """

    studies: int
    total: int
    images: int
    quarantined: int
    seconds: float
    resumed_studies: int = 0
    resumed_images: int = 0

    @property
    def images_per_second(self) -> float:
        """Images that this run writes in a second."""
        return (self.images - self.resumed_images) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest will take at the rate so far; None before the first part."""
        done = self.studies - self.resumed_studies
        return (self.total - self.studies) * self.seconds / done if done else None


@dataclass(frozen=True)
class Ingested:
    """The lake that was written, what was refused, and the ``seconds`` that reading and writing took.

    ``resumed_images`` were there from before an interruption. ``excluded`` counts the studies that were left out for
    each evaluation set to keep apart, ``strangers`` are those sets that name ids of which the corpus has none.
    """

    lake: Lake
    quarantined: tuple[Quarantined, ...]
    seconds: float
    resumed_images: int = 0
    excluded: Mapping[str, int] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()


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
    ``leakage.exclude``. Ray is started when it is not running. Raises CorpusError, also when no row of the tables is
    a study, or there are studies and none can be read, or LakeError; the lake that was there stays in force until all
    is written. The same call after an interruption continues.
    """
    root_url, lake_url = normal_url(root), normal_url(lake)
    refs, refused = plan(corpus_name, root_url, limit=limit)
    if refused and not refs:
        raise CorpusError(_nothing_listed(root, refused))
    if not ray.is_initialized():
        join(cpus=cpus, log_to_driver=False)
    workers = cpus or max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    left_out = leakage.Excluded(refs, [], {}, ())
    if exclude:
        left_out = leakage.exclude(corpus_name, root_url, refs, exclude, workers=workers)
        refs, refused = left_out.refs, refused + left_out.entries
    chunks = {f"part-{index:05d}.parquet": chunk for index, chunk in enumerate(chunked(refs, _part_size(len(refs))))}
    journal = Journal.open(lake_url, _digest(corpus_name, root_url, refs, refused))
    done = {name: entry for name, entry in journal.finished().items() if name in chunks}
    start = time.monotonic()
    counter = _Counter(chunks, done)
    for name, part, entries in _run({n: c for n, c in chunks.items() if n not in done}, root_url, journal, workers):
        done[name] = (part, entries)
        on_progress(counter.add(name, part, entries, time.monotonic() - start))
    seconds = time.monotonic() - start
    # In the order of the plan and not of completion, so that the lake does not tell how it came about.
    ordered = [done[name] for name in chunks]
    unread = [entry for _, entries in ordered for entry in entries]
    if refs and not any(part.groups for part, _ in ordered):
        journal.close()  # what there is to read may be there the next time
        raise CorpusError(_nothing_read(root, len(refs), unread))
    refused += unread
    written = commit_lake(lake_url, journal.generation, [part for part, _ in ordered], refused)
    journal.close()
    return Ingested(written, tuple(refused), seconds, counter.resumed_images, left_out.counts, left_out.strangers)


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


def ingest_refs(refs: Iterable[StudyRef], *, root: str, journal: Journal, name: str) -> tuple[Part, list[Quarantined]]:
    """Read the files of ``refs``, write them as the part ``name`` and enter it: the unit of work, free of Ray.

    Memory stays near one row group. Running it again writes the same file again.
    """
    refused: list[Quarantined] = []

    def studies() -> Iterator[Study]:
        for study, entries in _loaded(refs, root):
            refused.extend(entries)
            if study is not None:
                yield study

    part = write_part(journal.url, journal.generation, name, studies())
    journal.record(part, refused)
    return part, refused


def _loaded(refs: Iterable[StudyRef], root: str) -> Iterator[tuple[Study | None, list[Quarantined]]]:
    """``refs`` loaded, in order, a few ahead of the one that is asked for."""
    waiting: deque[tuple[StudyRef, Future[tuple[Study | None, list[Quarantined]]]]] = deque()
    remaining = deque(refs)
    with ThreadPoolExecutor(_READ_AHEAD) as pool:

        def submit() -> None:
            while remaining:
                volumes = remaining[0].has_volume or any(ref.has_volume for ref, _ in waiting)
                if len(waiting) >= (_VOLUMES_AHEAD if volumes else _READ_AHEAD):
                    return
                ref = remaining.popleft()
                waiting.append((ref, pool.submit(load, ref, root)))

        submit()
        while waiting:
            loaded = waiting.popleft()[1].result()
            submit()
            yield loaded


def _part_size(total: int) -> int:
    """Large parts, yet many enough to share out where that leaves a row group's worth in each."""
    return min(PART_STUDIES, max(32, math.ceil(total / 64)))


def _digest(corpus_name: str, root: str, refs: Sequence[StudyRef], refused: Sequence[Quarantined]) -> str:
    """What a part depends on, less the files themselves: an ingest with another digest is another ingest."""
    digest = hashlib.sha256(repr((corpus_name, root, __version__, SCHEMA_VERSION)).encode())
    for ref in refs:
        values = [getattr(ref, item.name) for item in fields(ref)]
        # A function's own text names an address, which differs from process to process.
        plain = [getattr(v, "__qualname__", None) or (dict(v) if isinstance(v, Mapping) else v) for v in values]
        digest.update(repr(plain).encode())
    for text in sorted(map(repr, refused)):
        digest.update(text.encode())
    return digest.hexdigest()


def _nothing_listed(root: str, entries: Sequence[Quarantined]) -> str:
    """What to say of tables that list no study: the commonest reason, and where it is met first."""
    ((reason, number),) = Counter(entry.reason for entry in entries).most_common(1)
    first = next(entry for entry in entries if entry.reason == reason)
    return (
        f"the tables under {root} list no study: {len(entries):,} rows are refused, {number:,} of them for this "
        f"reason: {reason} (first in {first.file or first.study_id}); see that this is the right corpus, mend the "
        "tables, and run this again; the lake that was there stays"
    )


def _nothing_read(root: str, studies: int, entries: Sequence[Quarantined]) -> str:
    """What to say of an ingest that read none of its ``studies``: the commonest reason of their files."""
    reasons = Counter(f"{entry.stage}: {entry.reason}" for entry in entries if entry.file and entry.stage != "report")
    reasons = reasons or Counter(f"{entry.stage}: {entry.reason}" for entry in entries)
    ((reason, number),) = reasons.most_common(1)
    return (
        f"none of the {studies:,} studies under {root} can be read, {number:,} times for this reason: {reason}; see "
        "that every worker reaches the images and run this again; the lake that was there stays"
    )


class _Counter:
    """Adds finished parts up."""

    def __init__(
        self, chunks: Mapping[str, Sequence[StudyRef]], done: Mapping[str, tuple[Part, list[Quarantined]]]
    ) -> None:
        self._chunks = chunks
        self._total = sum(len(chunk) for chunk in chunks.values())
        self._studies = self._resumed_studies = sum(len(chunks[name]) for name in done)
        self._images = self.resumed_images = sum(_images(part) for part, _ in done.values())
        self._quarantined = sum(len(entries) for _, entries in done.values())

    def add(self, name: str, part: Part, entries: Sequence[Quarantined], seconds: float) -> Progress:
        """One more part is complete, ``seconds`` after the start."""
        self._studies += len(self._chunks[name])
        self._images += _images(part)
        self._quarantined += len(entries)
        return Progress(
            self._studies,
            self._total,
            self._images,
            self._quarantined,
            seconds,
            self._resumed_studies,
            self.resumed_images,
        )


def _images(part: Part) -> int:
    return part.counts["total"].get("images", 0)


def _run(
    chunks: Mapping[str, list[StudyRef]], root: str, journal: Journal, workers: int
) -> Iterator[tuple[str, Part, list[Quarantined]]]:
    """Parts as they come."""

    def ingest(item: tuple[str, list[StudyRef]]) -> tuple[str, Part, list[Quarantined]]:
        name, chunk = item
        return name, *ingest_refs(chunk, root=root, journal=journal, name=name)

    return mapped(ingest, chunks.items(), name="ingest_refs", most=workers)
