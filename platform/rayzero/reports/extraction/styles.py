"""What sentences a method trains on: RadZero's, CARZero's or BrgSA's, as a projection and as a prompt.

The prompts are this project's own wording of what the papers describe; no paper's prompt is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rayzero.config import nearest
from rayzero.reports.sentences import make_sentence
from rayzero.studies.study import Report, Sentence, Status


@dataclass(frozen=True)
class Style:
    """One way to break a report up: what a sentence may say, and how a model is asked for it.

    ``version`` belongs to the prompt: raise it with any change of wording, for cached answers are kept by it.
    """

    name: str
    version: int
    statuses: tuple[Status, ...]
    located: bool
    task: str
    example: tuple[str, tuple[tuple[str, Status, str], ...]]
    """A report, and its statements as (finding, status, location)."""
    never_empty: bool = False

    def conform(self, sentences: Iterable[Sentence]) -> tuple[Sentence, ...]:
        """``sentences`` in this style, each once: other statuses left out, and places where it names none.

        A style that is never empty says that all is well where everything that the report names is denied; it says
        nothing of a report in which nothing was found.
        """
        sentences = tuple(sentences)
        kept: dict[str, Sentence] = {}
        for sentence in sentences:
            if sentence.status in self.statuses:
                made = make_sentence(sentence.finding, sentence.status, sentence.location if self.located else "")
                kept.setdefault(made.text, made)
        if self.never_empty and sentences and all(sentence.status == "absent" for sentence in sentences):
            return (NORMAL,)
        return tuple(kept.values())


NORMAL = make_sentence("acute cardiopulmonary abnormality", "absent")
"""What a study without any abnormality is given where a method needs one sentence at the least (BrgSA)."""

_EXAMPLE = (
    "FINDINGS: Compared with the prior film the left effusion has grown and is now moderate. New patchy opacity at "
    "the right base could be pneumonia. No pneumothorax. Heart size is normal.\n"
    "IMPRESSION: Enlarging left pleural effusion."
)

_MINIMAL = Style(
    name="minimal",
    version=1,
    statuses=("present", "uncertain", "absent"),
    located=True,
    task=(
        "Break the report up into its smallest statements. A statement is one finding, whether it is present, "
        "uncertain or absent, and the place that the report gives for it; leave the place empty where none is given. "
        "A normal organ is the absence of the disease that it rules out."
    ),
    example=(
        _EXAMPLE,
        (
            ("pleural effusion", "present", "left"),
            ("lung opacity", "present", "right lung base"),
            ("pneumonia", "uncertain", "right lung base"),
            ("pneumothorax", "absent", ""),
            ("cardiomegaly", "absent", ""),
        ),
    ),
)
_ALIGNMENT = Style(
    name="alignment",
    version=1,
    statuses=("present", "absent"),
    located=False,
    task=(
        "Restate the report as a list of diseases and signs in standard terms, so that a question such as 'is there "
        "pneumonia?' can be answered from it. Use the shortest common name of each disease, no place, no size. Mark it "
        "present when the report states or favours it and absent when the report rules it out."
    ),
    example=(
        _EXAMPLE,
        (
            ("pleural effusion", "present", ""),
            ("lung opacity", "present", ""),
            ("pneumonia", "present", ""),
            ("pneumothorax", "absent", ""),
            ("cardiomegaly", "absent", ""),
        ),
    ),
)
_SUMMARY = Style(
    name="summary",
    version=1,
    statuses=("present",),
    located=False,
    task=(
        "Summarise the report as the abnormalities that this examination shows, most important first, one term each, "
        "no place, no size, no cause. Leave out what is normal, ruled out or merely asked about. When nothing is "
        "abnormal the list is empty."
    ),
    example=(
        _EXAMPLE,
        (("pleural effusion", "present", ""), ("lung opacity", "present", "")),
    ),
    never_empty=True,
)
STYLES: Mapping[str, Style] = {style.name: style for style in (_MINIMAL, _ALIGNMENT, _SUMMARY)}
"""``minimal`` (RadZero, section 3.1), ``alignment`` (CARZero, prompt alignment), ``summary`` (BrgSA)."""


def find_style(name: str) -> Style:
    """The style called ``name``. Raises ValueError with the nearest name."""
    if name not in STYLES:
        raise ValueError(f"no style of sentences {name!r}: {nearest(name, sorted(STYLES))}")
    return STYLES[name]


def report_text(report: Report) -> str:
    """What of a report is read: its findings and its impression, white space collapsed."""
    sections = (("FINDINGS", report.findings), ("IMPRESSION", report.impression))
    return "\n".join(f"{name}: {' '.join(text.split())}" for name, text in sections if text.strip())
