"""A lake into one whose studies carry other sentences.

Two passes, so that a strategy meets every report at once and equal ones a single time: the first reads the reports
alone; the second, as Ray tasks of one part each, copies the studies with their sentences replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import PurePosixPath

import fsspec
import ray

from rayzero.cluster import join
from rayzero.reports.extraction.base import Strategy, Tally
from rayzero.reports.extraction.cache import AnswerCache
from rayzero.reports.extraction.run import Extracted, extract_all
from rayzero.reports.extraction.styles import Style
from rayzero.studies.errors import LakeError
from rayzero.studies.lake import (
    Lake,
    Part,
    Quarantined,
    RowGroup,
    commit_lake,
    generation_url,
    new_generation,
    normal_url,
    read_row_group,
    write_part,
)
from rayzero.studies.study import Sentence, Study
from rayzero.studies.tasks import mapped

_CARD = "extraction.json"
STAGE = "sentences"
"""The stage of a quarantine entry that says why rules wrote a study's sentences in the strategy's place."""


@dataclass(frozen=True)
class Rewritten:
    """The new lake and what its sentences cost."""

    lake: Lake
    tally: Tally


def rewrite_sentences(
    lake: Lake,
    out: str,
    strategy: Strategy,
    style: Style,
    *,
    cache: AnswerCache | None = None,
    cpus: int | None = None,
    on_progress: Callable[[Tally], None] = lambda tally: None,
) -> Rewritten:
    """Write ``lake`` with the sentences of ``strategy`` to ``out``, which may be the same place.

    Each study whose sentences the rules wrote instead is an entry of the quarantine table with stage ``sentences``;
    ``extraction.json`` beside the parts holds strategy, style and tally. ``cpus`` bounds the tasks that copy. Raises
    LakeError or ExtractionError; the lake that was there stays in force until all is written.
    """
    reports = {study.study_id: study.report for study in lake.read(columns=["report"])}
    extracted, tally = extract_all(reports, strategy, style, cache=cache, on_progress=on_progress)
    out_url, generation = normal_url(out), new_generation()
    if not ray.is_initialized():
        join(cpus=cpus, log_to_driver=False)
    workers = cpus or max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    parts = list(_copy(lake, out_url, generation, extracted, workers))
    _write_card(out_url, generation, strategy, style, tally)
    entries = [entry for entry in lake.quarantine() if entry.stage != STAGE]
    entries += [
        Quarantined(study_id=study_id, file="", stage=STAGE, reason=f"rules wrote the sentences ({item.fallback})")
        for study_id, item in extracted.items()
        if item.fallback
    ]
    return Rewritten(commit_lake(out_url, generation, parts, entries, beside=(_CARD,)), tally)


def copy_part(
    groups: Sequence[RowGroup], sentences: Mapping[str, tuple[Sentence, ...]], *, lake: str, generation: str, name: str
) -> Part:
    """Write the studies of ``groups`` with the given sentences as the part ``name``: one task, free of Ray."""

    def studies() -> Iterator[Study]:
        for group in groups:
            for study in read_row_group(group):
                yield replace(study, sentences=sentences[study.study_id])

    return write_part(lake, generation, name, studies())


def read_extraction(lake: Lake) -> dict[str, object] | None:
    """How the sentences of ``lake`` were made (strategy, style, tally), or None where ingest made them."""
    try:
        with fsspec.open(f"{generation_url(lake.url, lake.generation)}/{_CARD}", "rb") as file:
            card: dict[str, object] = json.load(file)
    except FileNotFoundError:
        return None
    return card


def _copy(lake: Lake, out: str, generation: str, extracted: Mapping[str, Extracted], workers: int) -> Iterator[Part]:
    """The parts in the lake's order."""

    def parts() -> Iterator[tuple[str, list[RowGroup], dict[str, tuple[Sentence, ...]]]]:
        for path, group in groupby(lake.row_groups(), key=lambda group: group.path):
            groups = list(group)
            # A task is sent the sentences of its own studies alone.
            ids = (study.study_id for group in groups for study in read_row_group(group, columns=["study_id"]))
            yield PurePosixPath(path).name, groups, {one: extracted[one].sentences for one in ids}

    def copy(part: tuple[str, list[RowGroup], dict[str, tuple[Sentence, ...]]]) -> Part:
        name, groups, sentences = part
        return copy_part(groups, sentences, lake=out, generation=generation, name=name)

    return mapped(copy, parts(), most=workers, ordered=True)


def _write_card(out: str, generation: str, strategy: Strategy, style: Style, tally: Tally) -> None:
    card = {
        "strategy": dict(strategy.identity),
        "style": {"name": style.name, "version": style.version},
        "tally": {**vars(tally), "fallbacks": dict(tally.fallbacks)},
    }
    url = f"{generation_url(out, generation)}/{_CARD}"
    try:
        with fsspec.open(url, "w", auto_mkdir=True) as file:
            json.dump(card, file)
    except OSError as error:
        raise LakeError(f"cannot write {url}: {error}") from error
