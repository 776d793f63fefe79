"""Pieces of HTML. Every text that comes from outside is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ui.client import ServerError
from ui.overlay import PALETTE, Grey, Look, blend, colour_bar, data_uri, locate, outlines, shrink
from ui.session import Finding, Reading, Study

NOTICE = "Research use only. Not for diagnosis."

_VIEW_SIDE = 768
_TILE_SIDE = 360


def header() -> str:
    """The name of the page and what it must not be used for."""
    return (
        '<header class="rz-header"><div><h1>RayZero <span>reading room</span></h1>'
        "<p>Ask a radiograph for findings in your own words; see how likely each is, and where.</p></div>"
        f'<p class="rz-notice" role="note">{NOTICE} Use de-identified images.</p></header>'
    )


def error_box(error: ServerError) -> str:
    """What went wrong and what to do."""
    return (
        f'<div class="rz-error" role="alert"><strong>{escape(error.title)}</strong>'
        f"<span>{escape(error.detail)}</span></div>"
    )


def hint(text: str) -> str:
    """A quiet line where content will appear."""
    return f'<div class="rz-hint">{escape(text)}</div>'


def section(title: str) -> str:
    """A small heading above a group of components."""
    return f'<h2 class="rz-section">{escape(title)}</h2>'


def gallery(examples: Sequence[Mapping[str, Any]], pictures: Sequence[Grey], chosen: str | None) -> str:
    """The examples as buttons, the one whose image is ``chosen`` marked."""
    if not examples:
        return hint("This server ships no examples.")
    cells = "".join(
        f'<button type="button" data-pick="{escape(example["id"])}" title="{escape(example["caption"])}" '
        f'aria-pressed="{str(example["image_id"] == chosen).lower()}">'
        f'<img src="{data_uri(shrink(picture, 160))}" alt="">'
        f"<span>{escape(example['title'])}</span></button>"
        for example, picture in zip(examples, pictures, strict=True)
    )
    return f'{section("Example studies")}<div class="rz-gallery" lang="en">{cells}</div>'


def original(study: Study) -> str:
    """The image as it is."""
    if study.preview is None:
        return hint("The image appears here.")
    picture = data_uri(shrink(study.preview, _VIEW_SIDE))
    caption = f"<b>Original</b> {escape(study.title)}"
    return _figure(picture, f"Radiograph: {study.title}", caption)


def overlay(study: Study, reading: Reading, heat: str | None, outlined: Sequence[str], look: Look) -> str:
    """The image with one finding's map in colour and the outlines of others."""
    if study.preview is None:
        return hint("The map appears here.")
    finding = reading.find(heat)
    base = shrink(study.preview, _VIEW_SIDE)
    picture = data_uri(base if finding is None else blend(base, finding.field, look))
    marks = "".join(_outline(reading, other, look.threshold) for other in _found(reading, outlined))
    if finding is not None and look.marks:
        marks += _box(reading, finding, look.threshold)
    names = [finding.label] if finding else []
    names += [name for name in outlined if name not in names]
    alt = f"Map over the radiograph: {', '.join(names) or 'none chosen'}"
    return _figure(picture, alt, _overlay_caption(finding, look), _svg(reading, marks))


def bars(reading: Reading) -> str:
    """Findings by probability, the likeliest first."""
    ranked = sorted(reading.findings, key=lambda finding: -finding.probability)
    rows = "".join(
        f'<li title="{escape(finding.sentence)}: logit {finding.logit:+.2f}">'
        f'<button type="button" data-pick="{escape(finding.label)}" class="rz-label" aria-label="Show the map of '
        f'{escape(finding.label)}">{_chip(reading, finding)}{escape(finding.label)}</button>'
        f"{_meter(finding.probability, finding.label, _colour(reading, finding))}</li>"
        for finding in ranked
    )
    return (
        f'<section aria-label="Findings by probability">{section("Findings by probability")}'
        f'<ol class="rz-bars">{rows}</ol>'
        f'<p class="rz-foot">{escape(reading.model)} <code>{reading.checksum[:12]}</code>, '
        f"{reading.milliseconds:.0f} ms. Choose a finding to see its map. {NOTICE}</p></section>"
    )


def tiles(study: Study, reading: Reading, look: Look) -> str:
    """One small overlay per finding, the likeliest first."""
    if study.preview is None:
        return hint("Ask about an image first.")
    base = shrink(study.preview, _TILE_SIDE)
    cells = []
    for finding in sorted(reading.findings, key=lambda finding: -finding.probability):
        picture = data_uri(blend(base, finding.field, look))
        marks = _svg(reading, _box(reading, finding, look.threshold)) if look.marks else ""
        caption = f"{_chip(reading, finding)}<b>{escape(finding.label)}</b> {_percent(finding.probability)}"
        cells.append(_figure(picture, f"Map of {finding.label}", caption, marks))
    return f'<div class="rz-tiles">{"".join(cells)}</div>'


def sentence_hits(answer: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Ranked sentences with the examples that say them."""
    rows = "".join(
        f'<li><span class="rz-label">{escape(hit["sentence"])}</span>'
        f"{_meter(hit['probability'], hit['sentence'], 'var(--rz-accent)')}"
        f'<span class="rz-logit">said of {escape(", ".join(titles.get(i, i) for i in hit["example_ids"]))}</span></li>'
        for hit in answer["results"]
    )
    return (
        f'<ol class="rz-bars rz-wide">{rows}</ol>'
        f'<p class="rz-foot">{len(answer["results"])} of {answer["index_size"]} sentences. {NOTICE}</p>'
    )


def image_hits(answer: Mapping[str, Any], titles: Mapping[str, str], thumbnails: Mapping[str, Grey]) -> str:
    """Ranked example images."""
    cells = []
    for hit in answer["results"]:
        name = hit["example_ids"][0]
        title = titles.get(name, name)
        caption = f"<b>{hit['rank']}. {escape(title)}</b> {_percent(hit['probability'])}"
        cells.append(_figure(data_uri(thumbnails[name]), f"Example: {title}", caption))
    return f'<div class="rz-tiles">{"".join(cells)}</div><p class="rz-foot">{NOTICE}</p>'


def card(model: Mapping[str, Any]) -> str:
    """What is known of a model: metrics with intervals first, then the rest of its card."""
    about = dict(model["card"])
    metrics = about.pop("metrics", {})
    about.pop("vocabulary", None)
    words = ", ".join(escape(word) for word in model["vocabulary"]) or "not stated"
    facts = {
        "System": model["system"],
        "Bundle": model["checksum"][:16],
        "Prompt": model["prompt_template"],
        **{str(key).replace("_", " ").capitalize(): value for key, value in about.items() if key != "system"},
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{_plain(value)}</dd>" for name, value in facts.items())
    return (
        f'<article class="rz-card"><h2>{escape(model["name"])}</h2>'
        f'<p class="rz-notice">{NOTICE} Scores come from a research model and may be wrong in any case.</p>'
        f"<h3>Metrics on held-out studies</h3>{_metrics(metrics)}"
        f"<h3>Findings it was evaluated on</h3><p>{words}</p><h3>Card</h3><dl>{listed}</dl></article>"
    )


def _figure(picture: str, alt: str, caption: str, above: str = "") -> str:
    return (
        f'<figure class="rz-figure"><div class="rz-frame"><img src="{picture}" alt="{escape(alt)}">{above}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _overlay_caption(finding: Finding | None, look: Look) -> str:
    if finding is None:
        return "<b>Overlay</b> choose a finding for a heat map"
    low, high = (float(finding.field.min()), float(finding.field.max())) if look.stretch else (0.0, 1.0)
    scale = (
        f'<span class="rz-scale"><span>{low:.2f}</span><i style="background:{colour_bar(look.colours)}"></i>'
        f"<span>{high:.2f}</span></span>"
    )
    return f"<b>{escape(finding.label)}</b> {_percent(finding.probability)} {scale}"


def _svg(reading: Reading, marks: str) -> str:
    return (
        f'<svg viewBox="0 0 {reading.width} {reading.height}" preserveAspectRatio="none" aria-hidden="true">'
        f"{marks}</svg>"
    )


def _outline(reading: Reading, finding: Finding, threshold: float) -> str:
    colour = _colour(reading, finding)
    lines = outlines(finding.field, threshold, reading.width, reading.height)
    shapes = "".join(
        f'<polygon points="{" ".join(f"{x:.0f},{y:.0f}" for x, y in line)}" stroke="{colour}"/>' for line in lines
    )
    if not lines:
        return ""
    x, y = locate(finding.field, threshold, reading.width, reading.height).peak
    return shapes + _text(reading, finding.label, x, y, colour)


def _box(reading: Reading, finding: Finding, threshold: float) -> str:
    region = locate(finding.field, threshold, reading.width, reading.height)
    x, y = region.peak
    arm = max(reading.width, reading.height) / 60
    cross = (
        f'<path d="M{x - arm:.0f} {y:.0f}H{x + arm:.0f}M{x:.0f} {y - arm:.0f}V{y + arm:.0f}" stroke="#000" '
        f'stroke-opacity=".6" class="rz-halo"/><path d="M{x - arm:.0f} {y:.0f}H{x + arm:.0f}'
        f'M{x:.0f} {y - arm:.0f}V{y + arm:.0f}" stroke="#fff"/>'
    )
    if region.box is None:
        return cross
    x0, y0, x1, y1 = region.box
    size = f'x="{x0:.0f}" y="{y0:.0f}" width="{x1 - x0:.0f}" height="{y1 - y0:.0f}"'
    return f'<rect {size} stroke="#000" stroke-opacity=".6" class="rz-halo"/><rect {size} stroke="#fff"/>{cross}'


def _text(reading: Reading, text: str, x: float, y: float, colour: str) -> str:
    size = max(reading.width, reading.height) / 32
    # Kept inside the frame: a label at the right edge ends at its peak instead of starting there.
    anchor = "end" if x > 0.6 * reading.width else "start"
    return (
        f'<text x="{x:.0f}" y="{max(y, size):.0f}" font-size="{size:.0f}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


def _found(reading: Reading, labels: Iterable[str]) -> list[Finding]:
    return [finding for label in labels if (finding := reading.find(label)) is not None]


def _colour(reading: Reading, finding: Finding) -> str:
    return PALETTE[reading.colour_index(finding) % len(PALETTE)]


def _chip(reading: Reading, finding: Finding) -> str:
    return f'<i class="rz-chip" style="background:{_colour(reading, finding)}"></i>'


def _meter(value: float, label: str, colour: str) -> str:
    return (
        f'<span class="rz-meter" role="meter" aria-label="{escape(label)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * value:.0f}"><i style="width:{100 * value:.1f}%;background:{colour}"></i></span>'
        f"{_percent(value)}"
    )


def _percent(value: float) -> str:
    return f'<span class="rz-percent">{100 * value:.0f}%</span>'


def _metrics(metrics: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{value}</td><td>{interval}</td></tr>"
        for name, value, interval in _flat_metrics("", metrics)
    )
    if not rows:
        return "<p>The card states none.</p>"
    head = "<tr><th scope='col'>Metric</th><th scope='col'>Value</th><th scope='col'>95% interval</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _flat_metrics(prefix: str, tree: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and "value" in value:
            rows.append((name, _plain(value["value"]), _interval(value)))
        elif isinstance(value, Mapping):
            rows.extend(_flat_metrics(name, value))
        else:
            rows.append((name, _plain(value), ""))
    return rows


def _interval(value: Mapping[str, Any]) -> str:
    bounds = value.get("interval") or [value.get("low"), value.get("high")]
    return "" if None in bounds else f"{_plain(bounds[0])} to {_plain(bounds[1])}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(str(key))}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return escape(str(value))
