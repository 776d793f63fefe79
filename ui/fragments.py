"""Small pieces of HTML that the tabs share. Every text that comes from outside is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ui.client import Grey, ServerError
from ui.overlay import PALETTE, data_uri, shrink
from ui.session import Finding, Reading

NOTICE = "Research use only. Not for diagnosis."


def header() -> str:
    """The name of the page, and what it must not be used for."""
    return (
        '<header class="rz-header"><div><h1>RayZero <span>reading room</span></h1>'
        "<p>Findings in your own words: how likely, and where.</p></div>"
        f'<p class="rz-notice" role="note">{NOTICE} Use de-identified images.</p></header>'
    )


def error_box(error: ServerError, *, again: bool = False) -> str:
    """What went wrong and what to do; ``again`` says that the page itself asks again."""
    more = " The page asks again by itself." if again else " Try again in a moment." if error.passing else ""
    return (
        f'<div class="rz-error" role="alert"><strong>{escape(error.title)}</strong>'
        f"<span>{escape(error.detail)}{more}</span></div>"
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
        f"<span>{_ct(example)}{escape(example['title'])}</span></button>"
        for example, picture in zip(examples, pictures, strict=True)
    )
    # Focusable, so that a list longer than its box can be scrolled from the keyboard.
    return (
        f'{section("Example studies")}<div class="rz-gallery" lang="en" tabindex="0" role="group" '
        f'aria-label="Example studies">{cells}</div>'
    )


def figure(picture: str, alt: str, caption: str, above: str = "") -> str:
    """A picture with marks ``above`` it and a caption below, both HTML."""
    return (
        f'<figure class="rz-figure"><div class="rz-frame"><img src="{picture}" alt="{escape(alt)}">{above}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def colour(reading: Reading, finding: Finding) -> str:
    """The colour that a finding has throughout the page."""
    return PALETTE[reading.colour_index(finding) % len(PALETTE)]


def chip(shade: str) -> str:
    """A small square of a colour."""
    return f'<i class="rz-chip" style="background:{shade}"></i>'


def meter(
    value: float, label: str, shade: str, mark: float | None = None, interval: tuple[float, float] | None = None
) -> str:
    """A bar from 0 to 1 with its figure: a percentage, or of a map, with a line at its threshold ``mark``, plain.

    ``interval`` is drawn as a whisker.
    """
    line = "" if mark is None else f'<b style="left:{100 * mark:.1f}%"></b>'
    told = percent(value) if mark is None else f'<span class="rz-percent">{value:.2f}</span>'
    spoken = ""
    if interval is not None:
        low, high = (100 * end for end in interval)
        line += f'<s class="rz-whisker" style="left:{low:.2f}%;width:max(3px, {high - low:.2f}%)"></s>'
        spoken = f' aria-valuetext="{escape(f"{percent_text(value)}, 95% interval {interval_text(interval)}")}"'
    return (
        f'<span class="rz-meter" role="meter" aria-label="{escape(label)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * value:.0f}"{spoken}>'
        f'<i style="width:{100 * value:.1f}%;background:{shade}"></i>{line}</span>{told}'
    )


def percent(value: float) -> str:
    """A share as a whole percentage, set as a figure."""
    return f'<span class="rz-percent">{escape(percent_text(value))}</span>'


def percent_text(value: float) -> str:
    """A share as a whole percentage; what is nearly none or all as "<1%" and ">99%"."""
    return "<1%" if 0 < value < 0.005 else ">99%" if 0.995 <= value < 1 else f"{100 * value:.0f}%"


def interval_text(interval: tuple[float, float]) -> str:
    """An interval of shares in whole percentages."""
    low, high = (percent_text(end) for end in interval)
    return low if low == high else f"{low.rstrip('%')} to {high}"


def _ct(example: Mapping[str, Any]) -> str:
    return '<em class="rz-tag">CT</em> ' if example["input"] == "volume" else ""
