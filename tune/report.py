"""A sweep's answer as JSON, as one page without external assets, and as the winner's preset."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from rayzero.config import Config, dump_yaml
from tune import charts
from tune.answer import NO_FIGURES, SweepResult


def report_files(result: SweepResult, *, command: str) -> dict[str, str]:
    """``report.json`` and ``report.html``; ``command`` opens the trials in Optuna's dashboard."""
    payload = {**asdict(result), "best": result.best.number, "pareto": [trial.number for trial in result.pareto]}
    payload |= {"images": result.images, "share_of_full_length": result.share}
    return {
        "report.json": json.dumps(_plain(payload), indent=2, allow_nan=False),
        "report.html": render_html(result, command=command),
    }


def preset_text(result: SweepResult, preset: Config) -> str:
    """The winner as a preset: what the sweep's preset was, with the winner's parameters."""
    text = dump_yaml(preset.model_copy(update={"storage": "runs"}))
    best = result.best
    found = f"{result.metric} {best.value:.4f} after {best.images} images"
    return f"# Winner of sweep {result.name}: trial {best.number}, {found}.\n{text}"


def render_html(result: SweepResult, *, command: str) -> str:
    """The readable report."""
    environment = Environment(
        loader=PackageLoader("tune", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=_figure, duration=_duration)
    names = list(dict.fromkeys(name for trial in result.trials for name in trial.parameters))
    return environment.get_template("report.html").render(
        result=result,
        metrics=[objective.metric for objective in result.objectives],
        names=names,
        varied=[name for name in names if _varies(result, name)],
        charts={name: Markup(text) for name, text in _charts(result, names).items()},
        slices=[Markup(charts.slice_of(result, name)) for name in names if _varies(result, name)],
        seconds=sum(trial.seconds for trial in result.trials),
        command=command,
        no_figures=NO_FIGURES,
    )


def _charts(result: SweepResult, names: list[str]) -> dict[str, str]:
    drawn = {}
    if any(len(trial.curve) > 1 for trial in result.trials):
        drawn["curves"] = charts.curves(result)
    if result.importance:
        drawn["importance"] = charts.importance(result)
    pair = _pair(result, names)
    if pair:
        drawn["plane"] = charts.plane(result, *pair)
    if len(result.objectives) > 1:
        first, *others = (objective.metric for objective in result.objectives)
        drawn["front"] = "".join(charts.front(result, first, other) for other in others)
    elif sum(bool(trial.images_per_second) for trial in result.of("complete")) > 1:
        drawn["speed"] = charts.speed(result)
    if result.repeated:
        drawn["repeated"] = charts.repeated(result)
    return drawn


def _pair(result: SweepResult, names: list[str]) -> tuple[str, str] | None:
    """Temperature and resolution where both were searched, else the two settings that matter most."""
    varied = [name for name in names if _varies(result, name)]
    asked = [next((name for name in varied if name.endswith(word)), None) for word in ("temperature", "resolution")]
    if asked[0] and asked[1]:
        return asked[0], asked[1]
    ranked = [name for name in result.importance if name in varied] or varied
    together = (pair for pair in itertools.combinations(ranked, 2) if _together(result, pair))
    return next(together, None)


def _varies(result: SweepResult, name: str) -> bool:
    return len({trial.parameters[name] for trial in result.trials if trial.values and name in trial.parameters}) > 1


def _together(result: SweepResult, pair: tuple[str, str]) -> bool:
    return any(trial.values and set(pair) <= trial.parameters.keys() for trial in result.trials)


def _figure(value: object) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _plain(value: Any) -> Any:
    """``value`` for JSON: what is not a number is null; settings as they are."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "model_dump"):
        return value.model_dump()
    return None if isinstance(value, float) and not math.isfinite(value) else value
