"""Several systems on the same studies: their ``report.json`` files side by side, as text, JSON and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rayzero.evaluation import charts
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.report import headline_name, page_environment, write_pages
from rayzero.storage import open_url

# What makes studies, tasks and intervals the same.
_SHARED = ("protocol", "lake.fingerprint", "lake.split", "bootstrap")


@dataclass(frozen=True)
class Comparison:
    """Reports by label. ``rows`` holds each headline figure with one cell per label, None where one has none."""

    reports: Mapping[str, Mapping[str, Any]]

    @property
    def rows(self) -> dict[str, dict[str, Mapping[str, Any] | None]]:
        """Dotted name of a figure to its cells by label: {"value", "low", "high", "n", "chance"}."""
        names = dict.fromkeys(name for report in self.reports.values() for name in report["headline"])
        return {name: {label: report["headline"].get(name) for label, report in self.reports.items()} for name in names}

    def to_json(self) -> dict[str, Any]:
        """The rows, and the facts that all reports share."""
        first = next(iter(self.reports.values()))
        shared = {"protocol": first["protocol"], "lake": first["lake"], "bootstrap": first["bootstrap"]}
        return {**shared, "systems": {k: r["system"] for k, r in self.reports.items()}, "figures": self.rows}

    def to_text(self) -> str:
        """The rows as a table of text."""
        labels = list(self.reports)
        width = max(20, *(len(label) + 2 for label in labels))
        lines = [f"{'figure':<38}" + "".join(f"{label:>{width}}" for label in labels) + "  chance"]
        for name, cells in self.rows.items():
            shown = "".join(f"{_cell(cells[label]):>{width}}" for label in labels)
            lines.append(f"{headline_name(name):<38}{shown}  {chance_range(cells)}")
        return "\n".join(lines)

    def to_html(self) -> str:
        """One page without external assets."""
        names = {name: headline_name(name) for name in self.rows}
        classes = {
            label: report["classification"]["per_class"]
            for label, report in self.reports.items()
            if "classification" in report
        }
        chart = Markup(charts.comparison(classes)) if classes else None
        first = next(iter(self.reports.values()))
        return (
            page_environment()
            .get_template("comparison.html")
            .render(comparison=self, first=first, names=names, chart=chart, chance_range=chance_range)
        )


def chance_range(cells: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The chance level of a figure, or from which to which where systems read images of different kinds."""
    levels = sorted({f"{cell['chance']:.3f}" for cell in cells.values() if cell})
    return levels[0] if len(levels) == 1 else f"{levels[0]} to {levels[-1]}"


def compare(sources: Mapping[str, str]) -> Comparison:
    """The reports in the folders (or URLs) ``sources``, by label.

    Raises EvaluationError for a folder without a report, a report of another version, and reports that are not over
    the same studies under the same protocol.
    """
    reports = {label: _read(url) for label, url in sources.items()}
    (first_label, first), *others = reports.items()
    for label, report in others:
        for key in _SHARED:
            if _at(report, key) != _at(first, key):
                raise EvaluationError(
                    f"{sources[label]} and {sources[first_label]} cannot be compared: {key} is {_at(report, key)} "
                    f"and {_at(first, key)}; evaluate both on the same split of the same lake"
                )
    return Comparison(reports)


def write_comparison(comparison: Comparison, url: str) -> str:
    """Write ``comparison.json`` and ``comparison.html`` into the folder ``url`` and return it."""
    files = {
        "comparison.json": json.dumps(comparison.to_json(), indent=2, allow_nan=False),
        "comparison.html": comparison.to_html(),
    }
    return write_pages(url, files)


def _read(url: str) -> dict[str, Any]:
    fs, root = open_url(url)
    path = f"{root}/report.json"
    if not fs.exists(path):
        raise EvaluationError(f"{url}: no report.json here; jobs.evaluate writes one")
    try:
        report = json.loads(fs.cat_file(path))
    except ValueError as error:
        raise EvaluationError(f"{url}/report.json is damaged: {error}") from None
    if not isinstance(report, dict) or "headline" not in report:
        raise EvaluationError(f"{url}/report.json was not written by this version; evaluate the bundle again")
    return report


def _at(report: Mapping[str, Any], dotted: str) -> Any:
    value: Any = report
    for key in dotted.split("."):
        value = value[key]
    return value


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["value"] is None:
        return "-"
    if cell["low"] is None:
        return f"{cell['value']:.3f}"
    return f"{cell['value']:.3f} [{cell['low']:.2f}, {cell['high']:.2f}]"
