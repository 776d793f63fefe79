"""A report's text into its sections, as MIMIC-CXR, CheXpert Plus and plain files lay it out."""

from __future__ import annotations

import re
from difflib import get_close_matches

from rayzero.studies.study import Report

_ALIASES = {
    "EXAMINATION": ("EXAMINATION", "EXAM", "STUDY", "PROCEDURE", "TYPE OF EXAMINATION", "NARRATIVE"),
    "INDICATION": (
        "INDICATION", "INDICATIONS", "HISTORY", "CLINICAL HISTORY", "CLINICAL INFORMATION", "CLINICAL INDICATION",
        "REASON FOR EXAM", "REASON FOR EXAMINATION", "REASON FOR THIS EXAMINATION",
    ),
    "COMPARISON": ("COMPARISON", "COMPARISONS", "PRIOR STUDIES", "COMPARISON STUDY"),
    "TECHNIQUE": ("TECHNIQUE", "PROCEDURE COMMENTS"),
    "FINDINGS": ("FINDINGS", "FINDING", "REFERENCE FINDINGS", "FINDINGS AND IMPRESSION"),
    "IMPRESSION": (
        "IMPRESSION", "IMPRESSIONS", "FINDINGS/IMPRESSION", "FINDINGS/ IMPRESSION",
        "CONCLUSION", "CONCLUSIONS", "IMPRESSION AND RECOMMENDATION",
        "IMPRESSION AND RECOMMENDATIONS", "PRELIMINARY IMPRESSION",
    ),
    "OTHER": (
        "RECOMMENDATION", "RECOMMENDATIONS", "RECOMMENDATION(S)", "NOTIFICATION", "ADDENDUM", "WET READ",
        "FINAL REPORT", "END OF IMPRESSION", "SUMMARY", "ACCESSION NUMBER", "PHYSICIAN TO PHYSICIAN RADIOLOGY CONSULT",
    ),
}  # fmt: skip
_SECTION = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
_NAMES = "|".join(re.escape(name) for name in sorted(_SECTION, key=len, reverse=True))
# In capitals a heading may stand anywhere; in other letters only at the start of a line. Any other line in capitals
# may be a misspelt heading or name the views.
_HEADING = re.compile(
    rf"(?:^|(?<=\s))({_NAMES})\s*:|^[ \t]*((?i:{_NAMES}))[ \t]*:|^[ \t]*([A-Z][A-Z ()/,.&'-]{{3,70}}):", re.MULTILINE
)
_VIEWS = re.compile(r"\b(?:CHEST|RADIOGRAPHS?|X-?RAYS?|VIEWS?|PORTABLE|PA|AP|FRONTAL|LATERAL)\b")
_SIMILAR = 0.86
_PARAGRAPH = re.compile(r"\n\s*\n")
_BANNER = re.compile(r"^\s*(?:FINAL REPORT|_{3,})\s*$", re.MULTILINE)


def split_sections(text: str) -> dict[str, str]:
    """Sections by canonical name (EXAMINATION, INDICATION, COMPARISON, TECHNIQUE, FINDINGS, IMPRESSION, OTHER).

    Where a name occurs more than once the last section with any text counts, as the report follows its addenda. Text
    before the first heading belongs to none, and a report without headings gives an empty mapping. A misspelt heading
    counts as the one it resembles. "LUNGS:" and the like are no headings: they belong to the section that holds them.
    A heading that names the views ("PA AND LATERAL CHEST RADIOGRAPHS:") begins the findings of a report that has no
    heading for them.
    """
    headings = [(match, name) for match in _HEADING.finditer(text) if (name := _name(match))]
    has_findings = any(name == "FINDINGS" for _, name in headings)
    headings = [(match, name) for match, name in headings if name != "VIEWS" or not has_findings]
    starts = [match.start() for match, _ in headings] + [len(text)]
    sections: dict[str, str] = {}
    for (match, name), end in zip(headings, starts[1:], strict=True):
        section = "FINDINGS" if name == "VIEWS" else name
        body = text[match.end() : end].strip()
        if body or section not in sections:
            sections[section] = body
    return sections


def parse_report(text: str) -> Report:
    """``text`` with its findings and impression, as running text: lines joined, paragraphs kept apart.

    Without any heading the whole text is the findings. With headings but neither of the two, as in some 10,500 reports
    of MIMIC-CXR, the last paragraph is, unless it is a section of its own.
    """
    sections = split_sections(text)
    if not sections:
        return Report(text=text, findings=_joined(_BANNER.sub("", text)))
    findings, impression = sections.get("FINDINGS", ""), sections.get("IMPRESSION", "")
    if not findings and not impression:
        findings = _last_paragraph(text)
    return Report(text=text, findings=_joined(findings), impression=_joined(impression))


def _name(match: re.Match[str]) -> str:
    """The section that a heading begins, ``VIEWS``, or "" for what is none."""
    known = match[1] or match[2]
    if known:
        return _SECTION[known.upper()]
    heading = " ".join(match[3].split())
    if similar := get_close_matches(heading, _SECTION, n=1, cutoff=_SIMILAR):
        return _SECTION[similar[0]]
    return "VIEWS" if _VIEWS.search(heading) else ""


def _last_paragraph(text: str) -> str:
    """The last paragraph that no heading begins, or ""."""
    paragraphs = [part.strip() for part in _PARAGRAPH.split(_BANNER.sub("", text)) if part.strip()]
    if not paragraphs:
        return ""
    heading = _HEADING.match(paragraphs[-1])
    return "" if heading and _name(heading) else paragraphs[-1]


def _joined(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in _PARAGRAPH.split(text) if part.strip())
