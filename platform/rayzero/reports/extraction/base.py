"""The interface of all strategies, and what an extraction cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rayzero.reports.extraction.styles import Style
from rayzero.studies.study import Report, Sentence


class ExtractionError(RuntimeError):
    """Extraction cannot go on: no endpoint, no permission, or nothing but failures."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What answering one report took. ``retries`` counts requests beyond the first."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A strategy's answer for one report, or why it has none (``failure`` names the kind, ``detail`` the case)."""

    sentences: tuple[Sentence, ...] = ()
    usage: Usage = field(default_factory=Usage)
    failure: str = ""
    detail: str = ""


class Strategy(Protocol):
    """One way to turn reports into sentences."""

    @property
    def identity(self) -> Mapping[str, object]:
        """All that decides the answers: a cached one is used for an equal identity, style and report alone."""
        ...

    @property
    def caches(self) -> bool:
        """Whether keeping the answers is worth it."""
        ...

    def extract(self, reports: Mapping[str, Report], style: Style) -> Iterator[tuple[str, Outcome]]:
        """(key, outcome) for every report, in the order in which they come to be.

        A report that fails is an outcome; ExtractionError means that the rest would fail as well.
        """
        ...


@dataclass
class Tally:
    """Counts of one extraction. ``reports`` = ``cached`` + ``answered`` + the sum of ``fallbacks``."""

    reports: int = 0
    cached: int = 0
    answered: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Reports that have their sentences."""
        return self.cached + self.answered + self.fallbacks.total()

    def add(self, outcome: Outcome) -> None:
        """Count ``outcome``; failed attempts cost tokens too."""
        self.retries += outcome.usage.retries
        self.prompt_tokens += outcome.usage.prompt_tokens
        self.completion_tokens += outcome.usage.completion_tokens
        if outcome.failure:
            self.fallbacks[outcome.failure] += 1
        else:
            self.answered += 1
