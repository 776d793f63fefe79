"""The answer of a sweep: trials ranked, and what each setting did, as JSON and as a page."""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Trial:
    """One finished trial: its settings, its objective, how far it trained and for how long."""

    parameters: dict[str, Any]
    value: float
    steps: int
    seconds: float


@dataclass(frozen=True)
class SweepResult:
    """All finished trials, best first, and how many failed."""

    name: str
    metric: str
    mode: str
    trials: tuple[Trial, ...]
    failed: int


def write_report(folder: Path, result: SweepResult) -> None:
    """Write ``report.json`` and a self-contained ``report.html`` to ``folder``."""
    (folder / "report.json").write_text(json.dumps(asdict(result), indent=2))
    (folder / "report.html").write_text(_page(result))


def _page(result: SweepResult) -> str:
    names = sorted({name for trial in result.trials for name in trial.parameters})
    head = "".join(f"<th>{escape(name)}</th>" for name in [result.metric, *names, "steps", "seconds"])
    rows = "".join(_row(trial, names) for trial in result.trials)
    plots = "".join(
        f'<img alt="{escape(name)} against {escape(result.metric)}" src="{_plot(result, name)}">' for name in names
    )
    failed = f"<p>{result.failed} trials failed; see their errors in the tune folder.</p>" if result.failed else ""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Sweep {escape(result.name)}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1b2430}}
table{{border-collapse:collapse;width:100%}}th,td{{text-align:left;padding:.4rem .8rem;border-bottom:1px solid #d5dbe3}}
tr:first-child td{{font-weight:600;background:#eef5ff}}img{{max-width:100%}}</style>
<h1>Sweep {escape(result.name)}</h1>
<p>{len(result.trials)} trials, best {escape(result.metric)} <b>{result.trials[0].value:.4f}</b>. One seed each:
differences of a few thousandths are noise.</p>{failed}
<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{plots}</html>"""


def _row(trial: Trial, names: list[str]) -> str:
    cells = [f"{trial.value:.4f}", *(_text(trial.parameters.get(name)) for name in names), str(trial.steps)]
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in [*cells, f"{trial.seconds:.0f}"]) + "</tr>"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plot(result: SweepResult, name: str) -> str:
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    points = [(trial.parameters[name], trial.value) for trial in result.trials if name in trial.parameters]
    numeric = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x, _ in points)
    xs = [x if numeric else str(x) for x, _ in points]
    axes.scatter(xs, [y for _, y in points], color="#1f6feb", zorder=3)
    axes.scatter(xs[:1], [points[0][1]], s=140, facecolors="none", edgecolors="#d1242f", linewidths=2, zorder=4)
    if (
        numeric
        and min(x for x, _ in points) > 0
        and math.log10(max(x for x, _ in points) / min(x for x, _ in points)) > 0.7
    ):
        axes.set_xscale("log")
    axes.set(xlabel=name, ylabel=result.metric)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
