"""``report.json`` and a self-contained ``report.html`` of one evaluation."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from rayzero.evaluation import charts, gallery
from rayzero.evaluation.metrics.bootstrap import Estimate
from rayzero.evaluation.result import EvaluationResult
from rayzero.evaluation.sections import DIRECTIONS
from rayzero.metrics.retrieval import CUTOFFS
from rayzero.storage import open_url, write_whole

_RETRIEVAL_EXAMPLES = 4

_NAMES = {
    "classification.macro_auroc": "Classification, macro AUROC",
    "grounding.pointing_accuracy": "Grounding, pointing accuracy",
    "segmentation.mean_dice": "Segmentation, mean Dice",
    "semantic_segmentation.miou": "Open-vocabulary segmentation, mIoU",
    "progression.appeared_auroc": "Since the prior study: appeared, AUROC",
    "progression.resolved_auroc": "Since the prior study: resolved, AUROC",
}


def write_report(
    result: EvaluationResult, url: str, *, overlays: int = 12, extra: Mapping[str, Any] | None = None
) -> str:
    """Write ``report.json`` and ``report.html`` into the folder ``url`` (any fsspec URL) and return it.

    ``replicates.npz`` holds the replicates of every headline figure, from which comparisons make pairs. ``overlays``
    is the number of example maps; ``extra`` is merged into the JSON's top level, for what a run knows and an
    evaluation does not, such as seconds per stage.
    """
    payload = {**result.to_json(), **(extra or {})}
    files: dict[str, str | bytes] = {
        "report.json": json.dumps(payload, indent=2, allow_nan=False),
        "report.html": render_html(result, overlays=overlays),
        "replicates.npz": _replicates(result),
    }
    return write_pages(url, files)


def write_pages(url: str, files: Mapping[str, str | bytes]) -> str:
    """Write ``files`` (by name) into the folder ``url`` and return it. Raises ConfigError for a bad address."""
    fs, root = open_url(url.rstrip("/"))
    fs.makedirs(root, exist_ok=True)
    for name, text in files.items():
        write_whole(fs, f"{root}/{name}", text.encode() if isinstance(text, str) else text)
    return url.rstrip("/")


def page_environment() -> Environment:
    """Where the templates of pages are, with the filters that they use."""
    environment = Environment(
        loader=PackageLoader("rayzero.evaluation", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(estimate=_estimate, words=charts.label, number="{:.3f}".format)
    return environment


def render_html(result: EvaluationResult, *, overlays: int = 12) -> str:
    """The readable report: one page without external assets."""
    return (
        page_environment()
        .get_template("report.html")
        .render(
            result=result,
            cutoffs=CUTOFFS,
            directions=DIRECTIONS,
            headline=[
                (headline_name(name, result.names), value, chance)
                for name, (value, chance) in result.headline().items()
            ],
            charts=_charts(result),
            overlays=gallery.overlays(result, overlays),
            retrieved=gallery.retrieval_examples(result, _RETRIEVAL_EXAMPLES),
        )
    )


def headline_name(key: str, names: Mapping[str, str]) -> str:
    """A headline's dotted name as a person reads it; ``names`` are those of a benchmark's own figures."""
    if key in names:
        return names[key]
    if key in _NAMES:
        return _NAMES[key]
    if key.startswith("retrieval.recall_at_"):
        return f"Retrieval, R@{key.rsplit('_', 1)[1]}"
    group = key.split(".")[1]
    return f"Macro AUROC, {charts.label(group)} findings"


def _replicates(result: EvaluationResult) -> bytes:
    samples = {name: value.samples for name, (value, _) in result.headline().items() if value.samples is not None}
    file = io.BytesIO()
    np.savez_compressed(file, bootstrap=np.array(result.bootstrap_key), **samples)  # type: ignore[arg-type]
    return file.getvalue()


def _charts(result: EvaluationResult) -> dict[str, Markup]:
    out: dict[str, str] = {}
    if result.classification:
        halves = charts.forest(result.classification)
        out["forest"] = "".join(f'<div class="chart">{half}</div>' for half in halves)
        out["roc"] = charts.roc(result.classification)
        out["pr"] = charts.precision_recall(result.classification)
    if result.calibration:
        out["reliability"] = charts.reliability(result.calibration.raw, result.calibration.calibrated)
    if result.segmentation:
        out["dice"] = charts.dice_curve(result.segmentation)
    # Drawn here from numbers; matplotlib escapes the names it writes.
    return {name: Markup(svg) for name, svg in out.items()}


def _estimate(value: Estimate) -> Markup:
    if value.value != value.value:
        return Markup('<span class="none">not defined</span>')
    interval = "" if value.low != value.low else f' <span class="ci">[{value.low:.3f}, {value.high:.3f}]</span>'
    return Markup(f"<b>{value.value:.3f}</b>{interval}")
