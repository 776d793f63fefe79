"""Reports of MIMIC-CXR into findings and impression, where their headings do not follow the common form.

A heading is a line that begins with one blank and capitals up to a colon (datasets spec, 1.1). The last section of
a name counts, so a report outweighs the addenda above it. About 10,500 of the 227,835 reports have neither section:
their last paragraph is what they say of the study, and becomes the findings.
"""

from __future__ import annotations

import re
from difflib import get_close_matches

from rayzero.studies.study import Report

_HEADING = re.compile(r"^ ([A-Z][A-Z ()/,-]*):(?=\s|$)", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*_{8,}[ \t]*$", re.MULTILINE)  # separates an addendum from the report
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_SECTIONS = {
    "FINDINGS": "findings",
    "FINDING": "findings",
    "REFERENCE FINDINGS": "findings",
    "IMPRESSION": "impression",
    "IMPRESSIONS": "impression",
    "CONCLUSION": "impression",
    "FINDINGS AND IMPRESSION": "impression",
    "FINDINGS/IMPRESSION": "impression",
}
# Many reports put the views in place of the word FINDINGS: "PA AND LATERAL VIEWS OF THE CHEST: ...".
_VIEWS = re.compile(r"\b(?:CHEST|VIEWS?|RADIOGRAPHS?|PORTABLE|FRONTAL|PA AND LAT|AP AND LAT|LATERAL AND)")
_TITLES = ("EXAM", "STUDY", "TYPE", "TECHNIQUE", "COMPARISON", "INDICATION", "HISTORY", "REASON", "PROCEDURE")
_SPELLING = 0.8
"""How alike two words must be to be one word misspelt: IMPRESSON and FINDNGS are, INDICATION and FINDINGS are not."""


def parse_mimic_report(text: str) -> Report:
    """``text`` with its findings and impression, headings misspelt or not, or its last paragraph as findings."""
    sections: dict[str, str] = {}
    headings = list(_HEADING.finditer(text))
    starts = [heading.start() for heading in headings] + [len(text)]
    for heading, end in zip(headings, starts[1:], strict=True):
        name = _section(" ".join(heading[1].split()))
        body = _joined(_RULE.split(text[heading.end() : end])[0])
        if name and (body or name not in sections):
            sections[name] = body
    if not any(sections.values()):
        sections = {"findings": _last_paragraph(text)}
    findings = sections.get("findings") or sections.get("views", "")
    return Report(text=text, findings=findings, impression=sections.get("impression", ""))


def _section(heading: str) -> str:
    """``findings``, ``impression``, ``views`` for a title that names the views, or "" for another section."""
    if heading in _SECTIONS:
        return _SECTIONS[heading]
    if any(word in heading for word in _TITLES):
        return ""
    if _VIEWS.search(heading):
        return "views"
    near = get_close_matches(heading, list(_SECTIONS), n=1, cutoff=_SPELLING)
    return _SECTIONS[near[0]] if near else ""


def _last_paragraph(text: str) -> str:
    paragraphs = [_joined(part) for part in _PARAGRAPH.split(_RULE.split(text)[-1])]
    paragraphs = [part for part in paragraphs if part and part != "FINAL REPORT"]
    return _HEADING.sub("", f" {paragraphs[-1]}").strip() if paragraphs else ""


def _joined(text: str) -> str:
    """Lines of 79 characters joined to running text; paragraphs stay apart."""
    return "\n\n".join(" ".join(part.split()) for part in _PARAGRAPH.split(text) if part.strip())
