"""Several systems on the same studies: their ``report.json`` files side by side, as text, JSON and a page."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from rayzero.evaluation import charts
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.metrics.bootstrap import Difference, paired_difference
from rayzero.evaluation.report import headline_name, page_environment, write_pages
from rayzero.storage import open_url

# What makes studies, tasks and intervals the same.
_SHARED = ("protocol", "lake.fingerprint", "lake.split", "lake.labels", "bootstrap")


@dataclass(frozen=True)
class Comparison:
    """Reports by label. ``rows`` holds each headline figure with one cell per label, None where one has none."""

    reports: Mapping[str, Mapping[str, Any]]
    replicates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> dict[str, str]:
        """The names of a benchmark's own figures by their dotted names."""
        return {
            f"{report['protocol']}.{key}": figure["name"]
            for report in self.reports.values()
            for key, figure in report.get("figures", {}).items()
        }

    @property
    def differences(self) -> list[tuple[str, str, Difference]]:
        """(figure, label, difference from the first label) wherever both have replicates of the same patients."""
        first, *others = self.reports
        found = []
        for name, cells in self.rows.items():
            base, mine = cells[first], self.replicates.get(first, {})
            for label in others:
                cell, theirs = cells[label], self.replicates.get(label, {})
                paired = name in mine and name in theirs and mine["bootstrap"] == theirs["bootstrap"]
                if paired and base and cell and None not in (base["value"], cell["value"]):
                    gap = paired_difference(theirs[name], mine[name], cell["value"] - base["value"])
                    found.append((name, label, gap))
        return found

    @property
    def rows(self) -> dict[str, dict[str, Mapping[str, Any] | None]]:
        """Dotted name of a figure to its cells by label: {"value", "low", "high", "n", "chance"}."""
        names = dict.fromkeys(name for report in self.reports.values() for name in report["headline"])
        return {name: {label: report["headline"].get(name) for label, report in self.reports.items()} for name in names}

    def to_json(self) -> dict[str, Any]:
        """The rows, and the facts that all reports share."""
        first = next(iter(self.reports.values()))
        shared = {"protocol": first["protocol"], "lake": first["lake"], "bootstrap": first["bootstrap"]}
        gaps = [{"figure": name, "system": label, **_plain(gap)} for name, label, gap in self.differences]
        systems = {k: r["system"] for k, r in self.reports.items()}
        return {**shared, "systems": systems, "figures": self.rows, "differences": gaps}

    def to_text(self) -> str:
        """The rows as a table of text."""
        labels = list(self.reports)
        width = max(20, *(len(label) + 2 for label in labels))
        lines = [f"{'figure':<38}" + "".join(f"{label:>{width}}" for label in labels) + "  chance"]
        for name, cells in self.rows.items():
            shown = "".join(f"{show_cell(cells[label]):>{width}}" for label in labels)
            lines.append(f"{headline_name(name, self.names):<38}{shown}  {chance_range(cells)}")
        first = next(iter(self.reports))
        lines += [
            f"{headline_name(name, self.names):<38}{label} - {first}: {gap.value:+.3f} "
            f"[{gap.low:+.3f}, {gap.high:+.3f}], p = {gap.p:.3f}"
            for name, label, gap in self.differences
        ]
        return "\n".join(lines)

    def to_html(self) -> str:
        """One page without external assets."""
        names = {name: headline_name(name, self.names) for name in self.rows}
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
            .render(
                comparison=self,
                first=first,
                names=names,
                chart=chart,
                chance_range=chance_range,
                references=self._references(),
            )
        )

    def _references(self) -> list[tuple[str, list[float | None], Mapping[str, float]]]:
        """(name, ours by the published definition, what papers report) of the figures that papers have."""
        found: dict[str, tuple[str, list[float | None], Mapping[str, float]]] = {}
        for report in self.reports.values():
            for key, figure in report.get("figures", {}).items():
                if figure["reference"] and key not in found:
                    cells = [other.get("figures", {}).get(key, {}).get("published") for other in self.reports.values()]
                    values = [cell["value"] if cell else None for cell in cells]
                    found[key] = figure["name"], values, figure["reference"]
        return list(found.values())


def _plain(gap: Difference) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in vars(gap).items()}


def chance_range(cells: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The chance level of a figure, or from which to which where systems read images of different kinds."""
    levels = sorted({f"{cell['chance']:.3f}" for cell in cells.values() if cell and cell["chance"] is not None})
    if not levels:
        return "-"
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
    return Comparison(reports, {label: _read_replicates(url) for label, url in sources.items()})


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


def _read_replicates(url: str) -> dict[str, Any]:
    """The replicates beside a report; none where another version wrote it."""
    fs, root = open_url(url)
    path = f"{root}/replicates.npz"
    if not fs.exists(path):
        return {}
    with np.load(io.BytesIO(fs.cat_file(path)), allow_pickle=False) as stored:
        return {name: str(stored[name]) if name == "bootstrap" else stored[name] for name in stored.files}


def _at(report: Mapping[str, Any], dotted: str) -> Any:
    value: Any = report
    for key in dotted.split("."):
        # Reports of earlier versions name no table of labels.
        value = value.get(key, "") if dotted == "lake.labels" else value[key]
    return value


def show_cell(cell: Mapping[str, Any] | None) -> str:
    """A figure with its interval as text."""
    if cell is None or cell["value"] is None:
        return "-"
    if cell["low"] is None:
        return f"{cell['value']:.3f}"
    return f"{cell['value']:.3f} [{cell['low']:.2f}, {cell['high']:.2f}]"
