"""What a model is, as HTML: its use and misuse, metrics with intervals, data and card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ui.fragments import NOTICE

# What every model of this kind cannot be trusted with, whatever its figures.
_NOT_FOR = (
    "Diagnosis, triage, treatment, or any decision about a person.",
    "Ruling a finding out: a low probability does not mean that the finding is absent.",
    "Measuring: boxes and maps show where the model looks, not the border of a lesion.",
    "Images of other body parts, of children, or of devices unlike those it was trained on, unless its data says so.",
    "Comparing figures between models of which one is not calibrated.",
)
_READS = {
    "radiograph": "one chest film",
    "study": "a frontal chest film, and further films of the study",
    "volume": "a chest CT",
}
_METRIC_WORDS = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "iou": "IoU"}


def cards(models: Sequence[Mapping[str, Any]], chosen: str | None) -> str:
    """The card of the chosen model, and those of the others to unfold."""
    first = next((model for model in models if model["name"] == chosen), models[0])
    others = "".join(
        f"<details class='rz-more'><summary>{escape(model['name'])}</summary>{card(model)}</details>"
        for model in models
        if model is not first
    )
    return card(first) + (f"<h3>The other models of this server</h3>{others}" if others else "")


def card(model: Mapping[str, Any]) -> str:
    """One model's card."""
    about = dict(model["card"])
    metrics = about.pop("metrics", {})
    for stated in ("vocabulary", "system", "calibration", "map_threshold"):
        about.pop(stated, None)
    data = about.pop("data", {})
    words = "".join(f"<li>{escape(word)}</li>" for word in model["vocabulary"])
    facts = {
        "System": model["system"],
        "Bundle": model["checksum"][:16],
        "Reads": _reads(model),
        "Probability": "calibrated on validation studies" if model["calibrated"] else "sigmoid of the logit",
        "Threshold of maps": f"{model['map_threshold']:.2f} on sigmoid(map)",
        "Prompt": model["prompt_template"],
    }
    rest = {str(key).replace("_", " ").capitalize(): value for key, value in about.items()}
    refused = "".join(f"<li>{escape(line)}</li>" for line in _NOT_FOR)
    return (
        f'<article class="rz-card"><h2>{escape(model["name"])}</h2>'
        f'<p class="rz-notice">{NOTICE} Scores come from a research model and may be wrong in any case.</p>'
        f"{_listed(facts)}<h3>It must not be used for</h3><ul>{refused}</ul>"
        f"<h3>Metrics on held-out studies</h3>{_metrics(metrics)}"
        f"<h3>Findings it was evaluated on</h3>{f'<ul class=rz-words>{words}</ul>' if words else _UNSTATED}"
        f"<h3>Data it was trained on</h3>{_listed(data) if data else _UNSTATED}"
        f"<h3>Card</h3>{_listed(rest)}</article>"
    )


_UNSTATED = "<p>The card states none.</p>"


def _reads(model: Mapping[str, Any]) -> str:
    companions = ", ".join(str(name).replace("_", " ") for name in model["companions"])
    return f"{_READS[model['input']]} ({companions})" if companions else _READS[model["input"]]


def _listed(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{escape(str(name))}</dt><dd>{_plain(value)}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def _metrics(metrics: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(_words(name))}</th><td>{_plain(value.get('value'))}</td>"
        f"<td>{_interval(value)}</td><td class='rz-forest'>{_forest(value)}</td>"
        f"<td>{_plain(value.get('n', ''))}</td></tr>"
        for name, value in _flat_metrics("", metrics)
    )
    if not rows:
        return _UNSTATED
    names = ("Metric", "Value", "95% interval", "0 to 1", "n")
    head = "".join(f"<th scope='col'>{name}</th>" for name in names)
    return (
        f'<div class="rz-scroll" tabindex="0" role="group" aria-label="Metrics"><table class="rz-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _flat_metrics(prefix: str, tree: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and "value" in value:
            rows.append((name, value))
        elif isinstance(value, Mapping):
            rows.extend(_flat_metrics(name, value))
        else:
            rows.append((name, {"value": value}))
    return rows


def _words(name: str) -> str:
    """``classification.seen.macro_auroc`` as "Classification, seen: macro AUROC"."""
    *groups, last = name.split(".")
    words = " ".join(_METRIC_WORDS.get(word, word) for word in last.split("_"))
    before = ", ".join(group.replace("_", " ") for group in groups)
    return f"{before[:1].upper()}{before[1:]}: {words}" if before else words


def _bounds(value: Mapping[str, Any]) -> list[Any] | None:
    bounds = value.get("interval") or [value.get("low"), value.get("high")]
    return None if None in bounds else list(bounds)


def _interval(value: Mapping[str, Any]) -> str:
    bounds = _bounds(value)
    return "" if bounds is None else f"{_plain(bounds[0])} to {_plain(bounds[1])}"


def _forest(value: Mapping[str, Any]) -> str:
    """The interval as a line with its value as a mark, where all lie between 0 and 1."""
    bounds, middle = _bounds(value), value.get("value")
    if bounds is None or not isinstance(middle, float) or not 0 <= bounds[0] <= middle <= bounds[1] <= 1:
        return ""
    low, high = (100 * float(bound) for bound in bounds)
    return (
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><path class="rz-level" d="M0 5H100"/>'
        f'<path d="M{low:.1f} 5H{high:.1f}"/><path d="M{100 * middle:.1f} 1V9"/></svg>'
    )


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(str(key))}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return escape(str(value))
