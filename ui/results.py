"""Answers as HTML: bars of findings, comparisons, and hits of a search."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ui.client import Grey
from ui.fragments import NOTICE, chip, colour, figure, interval_text, meter, percent, section
from ui.overlay import data_uri
from ui.session import Comparison, Finding, Reading

# Below this many percentage points a change is told as none.
_SAME = 10
_WHISKERS = "Whiskers: 95% interval of that calibration, not of how well the model reads this image. "


def bars(reading: Reading) -> str:
    """Findings by probability, the likeliest first."""
    intervals = any(finding.interval for finding in reading.findings)
    rows = "".join(
        f'<li title="{escape(finding.sentence)}: logit {finding.logit:+.2f}">'
        f'<button type="button" data-pick="{escape(finding.label)}" class="rz-label" aria-label="Show the map of '
        f'{escape(finding.label)}">{chip(colour(reading, finding))}{escape(finding.label)}</button>'
        f"{meter(finding.probability, finding.label, colour(reading, finding), interval=finding.interval)}"
        f"{_interval(finding) if intervals else ''}</li>"
        for finding in reading.ranked
    )
    kind = "calibrated on validation studies" if reading.calibrated else "not calibrated: the sigmoid of the logit"
    return (
        f'<section aria-label="Findings by probability">{section("Findings by probability")}'
        f'<ol class="rz-bars{" rz-intervals" if intervals else ""}">{rows}</ol>'
        f'<p class="rz-foot">{escape(reading.model)} <code>{reading.checksum[:12]}</code>, '
        f"{reading.milliseconds:.0f} ms. Probabilities are {kind}. {_WHISKERS if intervals else ''}{NOTICE}</p>"
        f"</section>"
    )


def _interval(finding: Finding) -> str:
    # Said to a screen reader by the bar itself.
    text = "" if finding.interval is None else escape(interval_text(finding.interval))
    return f'<span class="rz-interval" aria-hidden="true">{text}</span>'


def comparison(compared: Comparison, label: str | None, pictures: tuple[str, str]) -> str:
    """Two readings side by side: the maps of one finding, and every finding's change, the largest first."""
    left, right = compared.left, compared.right
    sides = "".join(
        f"<div><h3>{escape(side.name)}</h3>{picture}</div>"
        for side, picture in zip((left, right), pictures, strict=True)
    )
    pairs = compared.pairs
    rows = "".join(_change(compared, now, before, now.label == label) for before, now in pairs)
    told = "What changed" if compared.of_time else "Where they differ"
    heads = "".join(f"<th scope='col'>{escape(name)}</th>" for name in (left.short, right.short, "Change, points"))
    uneven = left.reading.calibrated != right.reading.calibrated
    caution = " One of the two is calibrated, the other is not: compare the order rather than the figures."
    return (
        f'<div class="rz-two">{sides}</div><section>{section(told)}<div class="rz-scroll" tabindex="0">'
        f'<table class="rz-table"><thead><tr><th scope="col">Finding</th>{heads}<th scope="col"></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="rz-foot">{_summary(compared)}{caution if uneven else ""} {NOTICE}</p></section>'
    )


def sentence_hits(answer: Mapping[str, Any], examples: Mapping[str, Mapping[str, Any]]) -> str:
    """Ranked sentences with the studies whose reports say them."""
    rows = "".join(
        f'<li><span class="rz-label">{escape(hit["sentence"])}</span>'
        f"{meter(hit['probability'], hit['sentence'], 'var(--rz-accent)')}"
        f'<div class="rz-said">{_said(hit, examples)}</div></li>'
        for hit in answer["results"]
    )
    return (
        f'<ol class="rz-bars rz-wide">{rows}</ol>'
        f'<p class="rz-foot">{len(answer["results"])} of {answer["index_size"]} sentences, '
        f"by {escape(answer['model'])}. {NOTICE}</p>"
    )


def image_hits(
    answer: Mapping[str, Any], examples: Mapping[str, Mapping[str, Any]], thumbnails: Mapping[str, Grey]
) -> str:
    """Ranked images: examples with their picture, those of an index by the study that holds them."""
    cells, rows = [], []
    for hit in answer["results"]:
        if hit["example_ids"]:
            name = hit["example_ids"][0]
            title = examples[name]["title"] if name in examples else name
            caption = f"<b>{hit['rank']}. {escape(title)}</b> {percent(hit['probability'])}"
            picture = thumbnails.get(name)
            cells.append(figure(data_uri(picture), f"Example: {title}", caption) if picture is not None else "")
        else:
            label = f"{hit['rank']}. {hit['image_id']}"
            rows.append(
                f'<li><span class="rz-label">{escape(label)}</span>'
                f"{meter(hit['probability'], label, 'var(--rz-accent)')}"
                f'<div class="rz-said">of study {escape(", ".join(hit["study_ids"]))}</div></li>'
            )
    tiles = f'<div class="rz-tiles">{"".join(cells)}</div>' if cells else ""
    listed = f'<ol class="rz-bars rz-wide">{"".join(rows)}</ol>' if rows else ""
    return f'{tiles}{listed}<p class="rz-foot">{answer["index_size"]} images searched. {NOTICE}</p>'


def _said(hit: Mapping[str, Any], examples: Mapping[str, Mapping[str, Any]]) -> str:
    """Who says a sentence; an example's report unfolds."""
    if not hit["example_ids"]:
        return f"said of study {escape(', '.join(hit['study_ids'][:6]))}"
    reports, others = [], []
    for name in hit["example_ids"]:
        example = examples.get(name, {"title": name, "report": ""})
        title, report = escape(str(example["title"])), str(example["report"])
        if report:
            reports.append(f"<details><summary>said of {title}</summary><p>{escape(report)}</p></details>")
        else:
            others.append(title)
    return "".join(reports) + (f"said of {', '.join(others)}" if others else "")


def _change(compared: Comparison, now: Finding, before: Finding, chosen: bool) -> str:
    change = _points(now, before)
    arrow, word = _told(change, compared.of_time)
    return (
        f'<tr{" class=rz-chosen" if chosen else ""}><th scope="row"><button type="button" class="rz-label" '
        f'data-pick="{escape(now.label)}">{escape(now.label)}</button></th>'
        f"<td>{percent(before.probability)}</td><td>{percent(now.probability)}</td>"
        f'<td class="rz-percent">{f"{change:+d}" if change else "0"}</td>'
        f'<td><span aria-hidden="true">{arrow}</span> {word}</td></tr>'
    )


def _points(now: Finding, before: Finding) -> int:
    """Percentage points between the figures as they are shown, so that a reader's subtraction agrees."""
    return round(100 * now.probability) - round(100 * before.probability)


def _told(change: int, of_time: bool) -> tuple[str, str]:
    if abs(change) < _SAME:
        return "·", "about the same"
    up, down = ("more likely now", "less likely now") if of_time else ("higher", "lower")
    return ("▲", up) if change > 0 else ("▼", down)


def _summary(compared: Comparison) -> str:
    changed = [now.label for before, now in compared.pairs if abs(_points(now, before)) >= _SAME]
    if not compared.of_time:
        names = f"{compared.left.reading.model} and {compared.right.reading.model}"
        return f"{escape(names)} differ by ten points or more in {len(changed)} of {len(compared.pairs)} findings."
    told = escape(", ".join(changed)) or "none"
    return f"Changed by ten points or more: {told}. Each film is read on its own position; maps are not registered."
