"""The charts of a report, as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayzero.evaluation.metrics.calibration import Reliability
from rayzero.evaluation.metrics.classification import Classification, mean_roc
from rayzero.evaluation.metrics.segmentation import THRESHOLDS
from rayzero.evaluation.sections import Segmentation

INK, GRID, SOFT = "#1f2933", "#e4e7eb", "#7b8794"
COLOURS = ("#1f5f99", "#c05621", "#2f7d4f", "#6b46a3")
# Findings that one forest plot draws: the table below it lists all.
_FOREST = 48
# As many findings stand in one column; longer names are cut.
_FEW, _NAME = 3, 30
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rayzero",
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
}


def label(name: str) -> str:
    """A group or direction as words."""
    return name.replace("_", " ")


def forest(part: Classification) -> list[str]:
    """AUROC per finding with its interval, group by group, best first; of many findings, the best and the worst.

    Two charts of as many rows each, to stand side by side, or one where there are few.
    """
    rows = list({name: group for group, names in part.members.items() for name in _best_first(part, names)}.items())
    if len(rows) > _FOREST:
        ordered = _best_first(part, tuple(name for name, _ in rows))
        ends = {*ordered[: _FOREST // 2], *ordered[-_FOREST // 2 :]}
        rows = [(name, group) for name, group in rows if name in ends]

    left = min([0.45, *(part.per_class[name].auroc.low - 0.03 for name, _ in rows)])
    middle = (len(rows) + 1) // 2 if len(rows) > _FEW else len(rows)
    halves = [half for half in (rows[:middle], rows[middle:]) if half]
    return [svg(partial(_forest, part, half, left, middle), 5.2, 1.1 + 0.3 * middle) for half in halves]


def _forest(part: Classification, rows: Sequence[tuple[str, str]], left: float, height: int, axes: Axes) -> None:
    """``rows`` (finding, group) on axes with room for ``height`` of them."""
    for place, (name, group) in enumerate(rows):
        one, colour = part.per_class[name].auroc, _colour(part, group)
        axes.plot([one.low, one.high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot(one.value, place, "o", color=colour, markersize=6)
    axes.axvline(0.5, color=SOFT, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [name if len(name) <= _NAME else f"{name[: _NAME - 1]}…" for name, _ in rows])
    axes.set_ylim(height - 0.4, -0.6)
    axes.set_xlim(left, 1.01)
    axes.set_xlabel("AUROC (95 % interval); dashed: chance")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    _group_legend(axes, part)


def comparison(systems: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """AUROC per finding with its interval, one colour per system; ``systems`` are ``per_class`` parts of reports."""
    findings = list(dict.fromkeys(name for classes in systems.values() for name in classes))
    spread = 0.16

    def draw(axes: Axes) -> None:
        for index, (label_, classes) in enumerate(systems.items()):
            colour = COLOURS[index % len(COLOURS)]
            marker = "o" if index < len(COLOURS) else "s"
            offset = spread * (index - (len(systems) - 1) / 2)
            rows = [(findings.index(name) + offset, one["auroc"]) for name, one in classes.items()]
            rows = [(place, auroc) for place, auroc in rows if auroc["value"] is not None]
            for place, auroc in rows:
                if auroc["low"] is not None:
                    axes.plot([auroc["low"], auroc["high"]], [place, place], color=colour, linewidth=1.5, alpha=0.6)
            values = [auroc["value"] for _, auroc in rows]
            axes.plot(values, [place for place, _ in rows], marker, color=colour, markersize=5, label=label_)
        axes.axvline(0.5, color=SOFT, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(findings)), findings)
        axes.set_ylim(len(findings) - 0.4, -0.6)
        axes.set_xlim(right=1.01)
        axes.set_xlabel("AUROC (95 % interval); dashed: chance")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(systems)), fontsize=9)

    return svg(draw, 7.6, 1.5 + (0.22 + spread * len(systems)) * len(findings))


def roc(part: Classification) -> str:
    """Every finding's ROC curve, thin, and the mean curve of each group, bold."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--")
        for group, names in part.members.items():
            colour = _colour(part, group)
            for name in names:
                axes.plot(*part.per_class[name].roc, color=colour, linewidth=0.8, alpha=0.3)
            if names:
                mean = mean_roc([part.per_class[name].roc for name in names])
                text = f"{_curves(group, names)} (AUROC {part.groups[group].value:.3f})"
                axes.plot(*mean, color=colour, linewidth=2.4, label=text)
        _unit_square(axes, "False positive rate", "True positive rate")
        # Above the axes, as beside it: two squares of one size.
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=9, borderaxespad=0)

    return svg(draw, 5.2, 4.8)


def precision_recall(part: Classification) -> str:
    """Every finding's precision-recall curve, one colour per group."""

    def draw(axes: Axes) -> None:
        for group, names in part.members.items():
            colour = _colour(part, group)
            for name in names:
                axes.step(*part.per_class[name].pr, where="pre", color=colour, linewidth=0.9, alpha=0.45)
            if names:
                mean = sum(part.per_class[name].average_precision.value for name in names) / len(names)
                text = f"{_curves(group, names)} (average precision {mean:.3f})"
                axes.plot([], [], color=colour, linewidth=2.4, label=text)
        _unit_square(axes, "Recall", "Precision")
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=9, borderaxespad=0)

    return svg(draw, 5.2, 4.8)


def reliability(raw: Reliability, calibrated: Reliability) -> str:
    """Observed share of positives against predicted probability; a point's area is its bin's share."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--")
        series = (("sigmoid of the logit", raw, SOFT), ("calibrated", calibrated, COLOURS[0]))
        for name, one, colour in series:
            text = f"{name} (ECE {one.expected_error:.3f})"
            axes.plot(one.predicted, one.observed, color=colour, linewidth=1.4, label=text)
            axes.scatter(one.predicted, one.observed, s=12 + 220 * one.count / one.count.sum(), color=colour)
        _unit_square(axes, "Predicted probability", "Observed share of positives")
        axes.legend(loc="upper left", fontsize=9)

    return svg(draw, 5.2, 4.8)


def dice_curve(part: Segmentation) -> str:
    """Mean Dice at every threshold, on validation and on the evaluated split."""

    def draw(axes: Axes) -> None:
        axes.plot(THRESHOLDS, part.validation_curve, color=SOFT, linewidth=1.6, label="validation")
        axes.plot(THRESHOLDS, part.curve, color=COLOURS[0], linewidth=2, label="evaluated split")
        text = f"threshold chosen on validation ({part.threshold:.2f})"
        axes.axvline(part.threshold, color=COLOURS[1], linewidth=1.4, label=text)
        axes.plot(part.oracle_threshold, part.oracle_mean_dice, "o", color=COLOURS[0], mfc="white", label="oracle")
        axes.set_xscale("symlog", linthresh=1.0)
        axes.set_xlim(THRESHOLDS[0], THRESHOLDS[-1])
        axes.set_xticks([-20, -5, -2, -1, 0, 1, 2, 5, 20], ["-20", "-5", "-2", "-1", "0", "1", "2", "5", "20"])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("Threshold on the map (logit, symmetric log scale)")
        axes.set_ylabel("Mean Dice over findings")
        axes.grid()
        axes.legend(loc="upper left", fontsize=9)

    return svg(draw, 6.4, 3.8)


def svg(draw: Callable[[Axes], None], width: float, height: float) -> str:
    """What ``draw`` draws on the axes of a figure of that size (inches), as inline SVG."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        # No date: equal results give equal files.
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    return text[text.index("<svg") :]


def _best_first(part: Classification, names: tuple[str, ...]) -> list[str]:
    return sorted(names, key=lambda name: -part.per_class[name].auroc.value)


def _colour(part: Classification, group: str) -> str:
    return COLOURS[list(part.members).index(group) % len(COLOURS)]


def _group_legend(axes: Axes, part: Classification) -> None:
    for group, names in part.members.items() if len(part.members) > 1 else ():
        if names:
            axes.plot([], [], "o-", color=_colour(part, group), label=label(group))
    if len(part.members) > 1:
        axes.legend(loc="lower left", fontsize=9, bbox_to_anchor=(0, 1), ncols=len(part.members), borderaxespad=0)


def _curves(group: str, names: Sequence[str]) -> str:
    """What a legend calls the curves of a group: a finding alone by its own name."""
    return names[0] if len(names) == 1 else f"{label(group)}, mean of {len(names)}"


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.005)
    axes.set_aspect("equal")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid()
