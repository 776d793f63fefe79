"""Streams examples to a training process through Ray Data, in an order that the seed alone decides.

Each epoch permutes the row groups of a lake (or of a feature cache) and deals them to the processes; a process
reads its row groups in windows, permutes the images inside each window, and moves on to the next epoch without
a pause. So the order is a function of (seed, rank, world size), and a resumed run continues at the very next
image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from rayzero.config import DataConfig
from rayzero.studies.augmentation import Augmentation
from rayzero.studies.errors import LakeError
from rayzero.studies.examples import EXAMPLES, admitted_views, examples_of
from rayzero.studies.lake import Lake, RowGroup, each_group, read_parquet_group, read_row_group
from rayzero.studies.priors import PriorFinder, PriorGroups, link_priors
from rayzero.studies.study import Split, View, to_row

READER_CPUS = 0.25
"""What a task that reads and prepares studies asks of the cluster: without it, a stream waits for ever."""
# Windows that are read together; two bursts are held at a time.
_BURST = 4
_COUNTED = ["images.list.element.view"]
_TEXTS = ["sentences.list.element.text", "report.text"]


@dataclass(frozen=True)
class Source:
    """Row groups to stream: of a lake, whose studies are prepared on the way, or of examples already prepared.

    ``num_rows`` of each row group counts the examples that it yields. ``priors`` tells where their prior studies
    are, when examples are studies. ``studies`` are the row groups of the lake that prepared examples were made from.
    """

    row_groups: tuple[RowGroup, ...]
    split: Split
    data: DataConfig
    resolution: int
    prepared: bool
    priors: PriorGroups = field(default_factory=dict)
    with_text: bool = False
    studies: tuple[RowGroup, ...] = ()

    @property
    def num_rows(self) -> int:
        """Examples of one epoch."""
        return sum(group.num_rows for group in self.row_groups)


@dataclass(frozen=True)
class Window:
    """Row groups that are read together; their rows are permuted by ``seed`` and the first ``skip`` left out.

    ``seed`` begins with the run's seed and the epoch.
    """

    row_groups: tuple[RowGroup, ...]
    seed: tuple[int, ...]
    skip: int = 0


def lake_source(lake: Lake, split: Split, data: DataConfig, resolution: int, *, with_text: bool = False) -> Source:
    """The images of one split of a lake, counted by view without reading a pixel.

    ``with_text`` leaves out studies that have nothing to align with: a training step would end at one.

    Raises LakeError when the split has no image of the views that ``data.views`` asks for.
    """
    views = admitted_views(data)
    groups = lake.row_groups([split])

    def images(row_group: RowGroup) -> int:
        rows = read_parquet_group(row_group, [*_COUNTED, *(_TEXTS if with_text else [])]).to_pylist()
        rows = [row for row in rows if not with_text or _says_something(row, data)]
        return sum(image["view"] in views for row in rows for image in row["images"])

    counts = each_group(groups, images)
    counted = [replace(group, num_rows=count) for group, count in zip(groups, counts, strict=True) if count]
    if not counted:
        raise LakeError(f"{lake.url}: split {split!r} has no {' or '.join(views)} image; see data.views and data.input")
    priors = link_priors(lake, groups) if data.input == "study" else {}
    return Source(tuple(counted), split, data, resolution, prepared=False, priors=priors, with_text=with_text)


def counted_by(data: DataConfig) -> tuple[frozenset[View], bool]:
    """All of ``data`` that decides how many examples a split gives ``with_text``: equal ones need no second count."""
    return frozenset(admitted_views(data)), data.texts == "report"


def read_examples(source: Source, row_group: RowGroup, augmentation: Augmentation | None = None) -> pa.Table:
    """The examples of one row group, changed by ``augmentation`` unless they are prepared already."""
    if source.prepared:
        return read_parquet_group(row_group, EXAMPLES.names)
    studies = list(read_row_group(row_group))
    find = PriorFinder(source.priors, studies)
    if source.with_text:
        studies = [study for study in studies if _says_something(to_row(study), source.data)]
    return examples_of(studies, source.data, source.resolution, find, augmentation)


def _says_something(row: dict[str, Any], data: DataConfig) -> bool:
    """Whether a study has the text that ``data.texts`` draws from: there is nothing to align without."""
    if data.texts == "report":
        return bool((row["report"] or {}).get("text", "").strip())
    return any(sentence["text"].strip() for sentence in row["sentences"])


def plan(source: Source, *, rank: int, world_size: int, seed: int, skip: int, rows: int) -> list[Window]:
    """The windows that hold ``rows`` rows for ``rank``, after the ``skip`` rows that it has already used.

    Exact, because ``RowGroup.num_rows`` of a source counts examples (``lake_source``).

    Raises ValueError when the source has no row group.
    """
    windows: list[Window] = []
    epoch, position, needed = 0, 0, skip + rows
    if not source.row_groups:
        raise ValueError("no row groups to stream from")
    while position < needed:
        order = np.random.default_rng([seed, epoch]).permutation(len(source.row_groups))
        # Fewer row groups than processes: every process then reads them all, in an order of its own.
        shared = len(source.row_groups) < world_size
        mine = np.random.default_rng([seed, epoch, rank]).permutation(order) if shared else order[rank::world_size]
        for start, group in enumerate(_windows([source.row_groups[i] for i in mine], source.data.shuffle_window)):
            count = sum(row_group.num_rows for row_group in group)
            drop = min(max(skip - position, 0), count)
            if drop < count:
                windows.append(Window(group, (seed, epoch, rank, start), drop))
            position += count
            if position >= needed:
                break
        epoch += 1
    return windows


def stream(
    source: Source, *, rank: int, world_size: int, seed: int, skip: int, sizes: Sequence[int]
) -> Iterator[pa.Table]:
    """Batches of ``sizes`` examples for one process, after the ``skip`` examples that it has already used."""
    if not sizes:
        return
    windows = plan(source, rank=rank, world_size=world_size, seed=seed, skip=skip, rows=sum(sizes))
    bursts = [windows[start : start + _BURST] for start in range(0, len(windows), _BURST)]
    # One burst is read while the one before it is trained on.
    with ThreadPoolExecutor(max_workers=1) as reader:
        following = reader.submit(_read_burst, source, bursts[0])
        yield from _batches(_in_turn(reader, source, bursts, following), sizes)


def _in_turn(
    reader: ThreadPoolExecutor, source: Source, bursts: list[list[Window]], following: Future[list[Any]]
) -> Iterator[pa.Table]:
    for index in range(len(bursts)):
        references = following.result()
        if index + 1 < len(bursts):
            following = reader.submit(_read_burst, source, bursts[index + 1])
        while references:
            yield ray.get(references.pop(0))


def _read_burst(source: Source, windows: list[Window]) -> list[Any]:
    """Read ``windows`` with Ray Data; references to one Arrow table each, in order.

    Run to its end and not streamed: a Ray Data execution whose outputs wait to be consumed keeps polling, and on a
    small machine takes half of the training's processor time.
    """
    handle = ray.put(source)

    def read(batch: Any) -> Any:
        return _read_window(ray.get(handle), windows[int(batch["id"][0])])

    # from_items and not range, whose read tasks ask for a whole CPU that a small machine has not got left.
    ids = [{"id": index} for index in range(len(windows))]
    dataset = ray.data.from_items(ids, override_num_blocks=len(ids)).map_batches(
        read, batch_size=1, zero_copy_batch=True, num_cpus=READER_CPUS
    )
    dataset.context.execution_options.preserve_order = True
    # The training line says how fast data arrives; a bar per worker would bury it.
    dataset.context.enable_progress_bars = False
    references: list[Any] = dataset.materialize().to_arrow_refs()
    return references


def _batches(tables: Iterator[pa.Table], sizes: Sequence[int]) -> Iterator[pa.Table]:
    """``tables`` cut and joined into tables of ``sizes`` rows; what is left over is dropped."""
    held: pa.Table | None = None
    for size in sizes:
        while held is None or held.num_rows < size:
            table = next(tables)
            held = table if held is None else pa.concat_tables([held, table])
        yield held.slice(0, size)
        held = held.slice(size)


def _windows(row_groups: list[RowGroup], size: int) -> list[tuple[RowGroup, ...]]:
    windows: list[tuple[RowGroup, ...]] = []
    current: list[RowGroup] = []
    for row_group in row_groups:
        current.append(row_group)
        if sum(r.num_rows for r in current) >= size:
            windows.append(tuple(current))
            current = []
    return [*windows, tuple(current)] if current else windows


def _read_window(source: Source, window: Window) -> pa.Table:
    augmentation = None
    if source.split == "train" and source.data.augmentation.changed:
        seed, epoch, *_ = window.seed
        augmentation = Augmentation(source.data, seed=seed, epoch=epoch)
    table = pa.concat_tables([read_examples(source, row_group, augmentation) for row_group in window.row_groups])
    order = np.random.default_rng(window.seed).permutation(table.num_rows)[window.skip :]
    return table.take(order)
