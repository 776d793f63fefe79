"""The charts of a sweep's page, as inline SVG. Filled marks are complete trials, hollow ones were stopped early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rayzero.evaluation.charts import COLOURS, INK, SOFT, svg
from tune.answer import SweepResult, Trial

_WINNER = "#d1242f"
# A range that spans more than this factor is drawn on a logarithmic axis.
_DECADES = 0.7


def importance(result: SweepResult) -> str:
    """Bars, the most important setting on top."""
    names = list(result.importance)

    def draw(axes: Axes) -> None:
        axes.barh(range(len(names)), [result.importance[name] for name in names], color=COLOURS[0], height=0.62)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the variance explained")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")

    return svg(draw, 5.6, 0.9 + 0.34 * len(names))


def slice_of(result: SweepResult, name: str) -> str:
    """One setting against the first objective."""
    trials = [trial for trial in result.trials if trial.values and name in trial.parameters]

    def draw(axes: Axes) -> None:
        for place, trial in zip(_places(axes.set_xticks, trials, name), trials, strict=True):
            _mark(axes, place, trial.value, trial, COLOURS[0], winner=trial.number == result.best.number)
        _scale(axes, "x", trials, name)
        axes.set_xlabel(name)
        axes.set_ylabel(result.metric)
        axes.grid()

    return svg(draw, 4.6, 3.1)


def plane(result: SweepResult, across: str, up: str) -> str:
    """Two settings against each other, the first objective as colour."""
    trials = [trial for trial in result.trials if trial.values and {across, up} <= trial.parameters.keys()]

    def draw(axes: Axes) -> None:
        xs, ys = _places(axes.set_xticks, trials, across), _places(axes.set_yticks, trials, up)
        values = [trial.value for trial in trials]
        size = [130 if trial.state == "complete" else 50 for trial in trials]
        drawn = axes.scatter(xs, ys, c=values, s=size, cmap="viridis", edgecolors=INK, linewidths=0.6, zorder=3)
        winner = [index for index, trial in enumerate(trials) if trial.number == result.best.number]
        axes.scatter(
            [xs[i] for i in winner], [ys[i] for i in winner], s=300, facecolors="none", edgecolors=_WINNER, linewidths=2
        )
        _scale(axes, "x", trials, across)
        _scale(axes, "y", trials, up)
        axes.margins(0.1, 0.25)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid()
        figure = axes.get_figure()
        assert figure is not None
        figure.colorbar(drawn, ax=axes, label=result.metric)

    return svg(draw, 7.4, 3.4)


def curves(result: SweepResult) -> str:
    """The first objective over images seen; stopped trials end in a cross."""

    def draw(axes: Axes) -> None:
        for trial in reversed(result.trials):
            if not trial.curve:
                continue
            xs, ys = zip(*trial.curve, strict=True)
            won, stopped = trial.number == result.best.number, trial.state == "stopped"
            colour = _WINNER if won else SOFT if stopped else COLOURS[0]
            width, alpha = (2.4, 1.0) if won else (1.2, 0.55 if stopped else 0.9)
            axes.plot(xs, ys, color=colour, linewidth=width, alpha=alpha, marker="." if len(xs) > 1 else None, zorder=2)
            axes.plot(xs[-1:], ys[-1:], "x" if stopped else "o", color=colour, markersize=5, zorder=3)
        for text, colour, marker in (
            ("winner", _WINNER, "o-"),
            ("complete", COLOURS[0], "o-"),
            ("stopped early", SOFT, "x-"),
        ):
            axes.plot([], [], marker, color=colour, label=text, markersize=5)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=9)
        axes.set_xlabel("images seen")
        axes.set_ylabel(result.metric)
        axes.grid()

    return svg(draw, 7.4, 3.8)


def front(result: SweepResult, left: str, right: str) -> str:
    """Complete trials by two objectives (``right`` across), with the Pareto front as a line."""
    metrics = [objective.metric for objective in result.objectives]
    up, across = metrics.index(left), metrics.index(right)

    def draw(axes: Axes) -> None:
        best = sorted(result.pareto, key=lambda trial: trial.values[across])
        axes.plot(
            [t.values[across] for t in best], [t.values[up] for t in best], color=COLOURS[1], linewidth=1.4, zorder=1
        )
        for trial in result.of("complete"):
            on_front = trial in best
            colour = COLOURS[1] if on_front else SOFT
            axes.plot(trial.values[across], trial.values[up], "o", color=colour, markersize=7 if on_front else 5)
            if on_front:
                axes.annotate(
                    f" {trial.number}", (trial.values[across], trial.values[up]), fontsize=8, xytext=(4, 4),
                    textcoords="offset points",
                )  # fmt: skip
        axes.set_xlabel(right)
        axes.set_ylabel(left)
        axes.margins(0.12)
        axes.grid()

    return svg(draw, 7.4, 3.8)


def speed(result: SweepResult) -> str:
    """Complete trials' first objective against their speed."""
    trials = [trial for trial in result.of("complete") if trial.images_per_second]

    def draw(axes: Axes) -> None:
        for trial in trials:
            won = trial.number == result.best.number
            _mark(axes, trial.images_per_second, trial.value, trial, COLOURS[0], winner=won)
        axes.set_xlabel("images per second")
        axes.set_ylabel(result.metric)
        axes.grid()

    return svg(draw, 4.6, 3.1)


def repeated(result: SweepResult) -> str:
    """Each repeated trial's seeds, their mean and its interval."""
    rows = result.repeated

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            colour = _WINNER if place == 0 else COLOURS[0]
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
            axes.plot(row.mean, place, "o", color=colour, markersize=8)
            axes.plot(row.values, [place] * len(row.values), "|", color=INK, markersize=12, alpha=0.7)
        axes.set_yticks(range(len(rows)), [f"trial {row.number}" for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(f"{result.metric}: mean of new seeds (ticks), 95 % interval")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")

    return svg(draw, 7.4, 1.0 + 0.42 * len(rows))


def _mark(axes: Axes, x: Any, y: float, trial: Trial, colour: str, *, winner: bool) -> None:
    filled = trial.state == "complete"
    axes.plot(x, y, "o", color=colour, mfc=colour if filled else "white", markersize=6, alpha=0.9, zorder=3)
    if winner:
        axes.plot(x, y, "o", mfc="none", color=_WINNER, markersize=13, markeredgewidth=2, zorder=4)


def _is_numeric(trials: Sequence[Trial], name: str) -> bool:
    values = [trial.parameters[name] for trial in trials]
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _places(set_ticks: Any, trials: Sequence[Trial], name: str) -> list[float]:
    """Where values stand on an axis: numbers where they are, others side by side, which ``set_ticks`` names."""
    values = [trial.parameters[name] for trial in trials]
    if _is_numeric(trials, name):
        distinct = sorted(set(values))
        if len(distinct) <= 4 and all(isinstance(value, int) for value in distinct):
            set_ticks(distinct, [str(value) for value in distinct])
        return values
    distinct = sorted(set(values), key=str)
    set_ticks(range(len(distinct)), [str(value) for value in distinct])
    return [distinct.index(value) for value in values]


def _scale(axes: Axes, which: str, trials: Sequence[Trial], name: str) -> None:
    values = [trial.parameters[name] for trial in trials]
    if _is_numeric(trials, name) and min(values) > 0 and isinstance(max(values), float):
        if math.log10(max(values) / min(values)) > _DECADES:
            (axes.set_xscale if which == "x" else axes.set_yscale)("log")
            axis = axes.xaxis if which == "x" else axes.yaxis
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())
    elif len(set(values)) <= 4:
        axes.margins(x=0.25 if which == "x" else None, y=0.25 if which == "y" else None)
