"""A report's text into its sections."""

from __future__ import annotations

import re

from rayzero.studies.study import Report

_ALIASES = {
    "EXAMINATION": ("EXAMINATION", "EXAM", "STUDY", "PROCEDURE"),
    "INDICATION": (
        "INDICATION", "INDICATIONS", "HISTORY", "CLINICAL HISTORY", "CLINICAL INFORMATION", "CLINICAL INDICATION",
        "REASON FOR EXAM", "REASON FOR EXAMINATION", "REASON FOR THIS EXAMINATION",
    ),
    "COMPARISON": ("COMPARISON", "COMPARISONS", "PRIOR STUDIES"),
    "TECHNIQUE": ("TECHNIQUE",),
    "FINDINGS": ("FINDINGS", "FINDING", "FINDINGS AND IMPRESSION"),
    "IMPRESSION": ("IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS"),
    "OTHER": ("RECOMMENDATION", "RECOMMENDATIONS", "NOTIFICATION", "ADDENDUM", "WET READ", "FINAL REPORT"),
}  # fmt: skip
_SECTION = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
_NAMES = "|".join(sorted(_SECTION, key=len, reverse=True))
# In capitals a heading may stand anywhere; in other letters only at the start of a line. "LUNGS:" and the like
# are no headings: they belong to the section that holds them.
_HEADING = re.compile(rf"(?:^|(?<=\s))({_NAMES})\s*:|^[ \t]*((?i:{_NAMES}))[ \t]*:", re.MULTILINE)


def split_sections(text: str) -> dict[str, str]:
    """Sections by canonical name (EXAMINATION, INDICATION, COMPARISON, TECHNIQUE, FINDINGS, IMPRESSION, OTHER).

    Where a name occurs more than once the last section with any text counts, as an addendum follows what it
    corrects. Text before the first heading belongs to none. A report without headings gives an empty mapping.
    """
    headings = list(_HEADING.finditer(text))
    starts = [heading.start() for heading in headings] + [len(text)]
    sections: dict[str, str] = {}
    for heading, end in zip(headings, starts[1:], strict=True):
        name = _SECTION[(heading[1] or heading[2]).upper()]
        body = text[heading.end() : end].strip()
        if body or name not in sections:
            sections[name] = body
    return sections


def parse_report(text: str) -> Report:
    """``text`` with its findings and impression; without any heading the whole text is the findings."""
    sections = split_sections(text)
    if not sections:
        return Report(text=text, findings=text.strip())
    return Report(text=text, findings=sections.get("FINDINGS", ""), impression=sections.get("IMPRESSION", ""))
