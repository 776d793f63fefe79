"""Any strategy over any number of reports: equal texts once, answers cached, failures replaced by rules and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rayzero.reports.extraction.base import ExtractionError, Outcome, Strategy, Tally
from rayzero.reports.extraction.cache import AnswerCache, cache_key
from rayzero.reports.extraction.styles import Style, report_text
from rayzero.reports.sentences import extract_sentences
from rayzero.studies.study import Report, Sentence

FAILURES_IN_A_ROW = 50
"""After so many failures in a row extraction stops: rules in place of a model for a whole corpus help nobody."""

_LOOKUPS = 512
"""Cached answers that are looked up at once."""


@dataclass(frozen=True)
class Extracted:
    """The sentences of one report; ``fallback`` says why rules wrote them in the strategy's place, or is empty."""

    sentences: tuple[Sentence, ...]
    fallback: str = ""


def extract_all(
    reports: Mapping[str, Report],
    strategy: Strategy,
    style: Style,
    *,
    cache: AnswerCache | None = None,
    on_progress: Callable[[Tally], None] = lambda tally: None,
) -> tuple[dict[str, Extracted], Tally]:
    """The sentences of every report by its key, and what they cost.

    Reports of equal findings and impression are extracted once (siblings share a text), and counted once in the
    tally. One without any text has no sentences and is not asked about. Raises ExtractionError when the strategy
    cannot go on, or fails ``FAILURES_IN_A_ROW`` times; answers that came before are in the cache.
    """
    start = time.monotonic()
    tally, interned = Tally(), dict[Sentence, Sentence]()
    texts = {key: report_text(report) for key, report in reports.items()}
    distinct = {text: reports[key] for key, text in texts.items() if text}
    tally.reports = len(distinct)
    found: dict[str, Extracted] = {"": Extracted(())}
    for text, extracted in _answers(distinct, strategy, style, cache, tally):
        # Sentences repeat across reports: one object for each keeps a large corpus in memory.
        found[text] = Extracted(tuple(interned.setdefault(s, s) for s in extracted.sentences), extracted.fallback)
        tally.seconds = time.monotonic() - start
        on_progress(tally)
    return {key: found[text] for key, text in texts.items()}, tally


def _answers(
    distinct: Mapping[str, Report], strategy: Strategy, style: Style, cache: AnswerCache | None, tally: Tally
) -> Iterator[tuple[str, Extracted]]:
    """(text, sentences) from the cache first, then from the strategy."""
    keep = cache if strategy.caches else None
    keys = {text: cache_key(report, style, strategy.identity) for text, report in distinct.items()}
    known = _known(keys, keep) if keep else {}
    for text, sentences in known.items():
        tally.cached += 1
        yield text, Extracted(sentences)
    questions = {text: report for text, report in distinct.items() if text not in known}
    try:
        for text, outcome in _checked(strategy.extract(questions, style)):
            tally.add(outcome)
            if outcome.failure:
                yield text, Extracted(style.conform(extract_sentences(questions[text])), _why(outcome))
                continue
            if keep:
                keep.put(keys[text], outcome.sentences)
            yield text, Extracted(outcome.sentences)
    finally:
        if keep:
            keep.flush()


def _known(keys: Mapping[str, str], cache: AnswerCache) -> dict[str, tuple[Sentence, ...]]:
    """The texts whose answers are kept, in the order of ``keys``."""
    found: dict[str, tuple[Sentence, ...]] = {}
    texts = list(keys)
    for first in range(0, len(texts), _LOOKUPS):
        some = {keys[text]: text for text in texts[first : first + _LOOKUPS]}
        found.update({some[key]: sentences for key, sentences in cache.get(some).items()})
    return found


def _checked(outcomes: Iterator[tuple[str, Outcome]]) -> Iterator[tuple[str, Outcome]]:
    """``outcomes``, until too many in a row are failures."""
    failures = 0
    for text, outcome in outcomes:
        yield text, outcome
        failures = failures + 1 if outcome.failure else 0
        if failures == FAILURES_IN_A_ROW:
            raise ExtractionError(f"{failures} reports failed in a row; the last: {_why(outcome)}")


def _why(outcome: Outcome) -> str:
    return f"{outcome.failure}: {outcome.detail}" if outcome.detail else outcome.failure
