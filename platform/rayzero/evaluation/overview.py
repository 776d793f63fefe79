"""Several systems on several benchmarks: one table of the figures that papers report, and what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayzero.evaluation.comparison import Comparison, chance_range, show_cell
from rayzero.evaluation.report import headline_name, page_environment


@dataclass(frozen=True)
class Row:
    """One figure of a protocol: a cell per system, None where it has none; and what papers report of it.

    A cell is strict. ``published`` is the same system's value by the definition of papers, where that is another.
    """

    protocol: str
    name: str
    cells: Mapping[str, Mapping[str, Any] | None]
    published: Mapping[str, float | None]
    reported: Mapping[str, float]


@dataclass(frozen=True)
class Overview:
    """Comparisons by protocol of the systems ``labels``, each of which lacks some.

    ``refused`` are (system, protocol, reason) of what fits by its kind, and yet could not be measured.
    """

    labels: Sequence[str]
    comparisons: Mapping[str, Comparison]
    refused: Sequence[tuple[str, str, str]] = ()

    @property
    def rows(self) -> list[Row]:
        """Of each protocol the figures that papers report and, where they report none, its first."""
        found = []
        for protocol, comparison in self.comparisons.items():
            figures = next(iter(comparison.reports.values())).get("figures", {})
            references = {f"{protocol}.{key}": one["reference"] for key, one in figures.items() if one["reference"]}
            chosen = [name for name in comparison.rows if name in references] or list(comparison.rows)[:1]
            for name in chosen:
                cells = {label: comparison.rows[name].get(label) for label in self.labels}
                text = headline_name(name, comparison.names)
                published = {label: _published(comparison, name, label, cells[label]) for label in self.labels}
                found.append(Row(protocol, text, cells, published, references.get(name, {})))
        return found

    def to_json(self) -> dict[str, Any]:
        """Every comparison by protocol, and what could not be measured."""
        refused = [dict(zip(("system", "protocol", "reason"), one, strict=True)) for one in self.refused]
        protocols = {name: comparison.to_json() for name, comparison in self.comparisons.items()}
        return {"systems": list(self.labels), "protocols": protocols, "not_measured": refused}

    def to_text(self) -> str:
        """The rows as a table of text."""
        width = max(24, *(len(label) + 2 for label in self.labels))
        lines = [
            f"{'protocol':<19}{'figure (strict)':<40}" + "".join(f"{one:>{width}}" for one in self.labels) + "  chance"
        ]
        before = ""
        for row in self.rows:
            protocol = row.protocol if row.protocol != before else ""
            before = row.protocol
            shown = "".join(f"{show_cell(row.cells[label]):>{width}}" for label in self.labels)
            lines.append(f"{protocol:<19}{row.name:<40}{shown}  {chance_range(row.cells)}")
        lines += [f"not measured: {label} on {protocol}: {reason}" for label, protocol, reason in self.refused]
        return "\n".join(lines)

    def to_html(self) -> str:
        """One page without external assets; it links to a page of each protocol."""
        return page_environment().get_template("overview.html").render(overview=self, chance_range=chance_range)


def _published(comparison: Comparison, name: str, label: str, cell: Mapping[str, Any] | None) -> float | None:
    """The value of a figure by the papers' definition, None where it is that of ``cell`` or there is none."""
    figures = comparison.reports.get(label, {}).get("figures", {})
    estimate = figures.get(name.partition(".")[2], {}).get("published")
    if cell is None or estimate is None or estimate["value"] is None or estimate["value"] == cell["value"]:
        return None
    return float(estimate["value"])
