"""The default strategy: rules, with no model and no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rayzero.reports.extraction.base import Outcome
from rayzero.reports.extraction.styles import Style
from rayzero.reports.sentences import extract_sentences
from rayzero.studies.study import Report


class Rules:
    """``rayzero.reports.sentences`` as a strategy."""

    identity: Mapping[str, object] = {"strategy": "rules"}
    caches = False

    def extract(self, reports: Mapping[str, Report], style: Style) -> Iterator[tuple[str, Outcome]]:
        """See ``Strategy.extract``; no report fails."""
        for key, report in reports.items():
            yield key, Outcome(sentences=style.conform(extract_sentences(report)))
