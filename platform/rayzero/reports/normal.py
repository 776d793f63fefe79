"""Statements that all is well, as the findings that they deny."""

from __future__ import annotations

import re

_WELL = r"(?:normal|unremarkable|within normal limits|clear|not enlarged|stable and normal|intact|grossly normal)"
_GAP = r"(?:(?! (?:upper|top|borderline|not|enlarged|low|except)\b)(?:,? |/)[\w-]+){0,7}?"
_HEART = r"(?:heart|cardiac|cardiomediastinal|cardio-mediastinal)"
_RULES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(pattern), findings)
    for pattern, findings in (
        (rf"\b{_HEART}\b{_GAP} {_WELL}\b|\bnormal (?:heart|cardiac|cardiomediastinal)\b", ("cardiomegaly",)),
        (
            rf"\b(?:cardiomediastinal|cardio-mediastinal|mediastinum|mediastinal)\b{_GAP} {_WELL}\b"
            r"|\bnormal (?:cardiomediastinal|mediastinum|mediastinal)\b",
            ("enlarged cardiomediastinum",),
        ),
        (
            r"\blungs?\b(?: fields?| zones?| bases?| parenchyma)?(?: (?:are|is|remains?|appears?|both|bilaterally"
            r"|grossly|well|aerated|expanded|inflated|and|otherwise|free|essentially|symmetrically|normally|now|again))*"
            r" clear\b(?! of)"
            r"|\bclear lungs?\b|\blungs?(?: are| is)? (?:normal|unremarkable)\b",
            ("lung opacity",),
        ),
        (
            rf"\bpulmonary (?:vascularity|vasculature|vessels|vascular\w*)\b{_GAP} {_WELL}\b"
            r"|\bnormal pulmonary (?:vascularity|vasculature|vessels)\b",
            ("pulmonary vascular congestion",),
        ),
        (
            r"\b(?:costophrenic (?:angles?|sulci)|pleural (?:spaces?|recesses))(?: are| is| remain)?(?: \w+){0,2}"
            r" (?:clear|sharp|normal|unremarkable)\b",
            ("pleural effusion",),
        ),
        (
            r"\b(?:bones?|osseous|bony|skeletal|visualized skeleton|ribs)\b(?: [\w-]+){0,5}?"
            r" (?:intact|unremarkable|normal|within normal limits|without (?:acute )?abnormality)\b",
            ("acute bony abnormality",),
        ),
        (rf"\bhil(?:a|ar|um)\b(?: [\w-]+){{0,4}}? {_WELL}\b", ("hilar enlargement",)),
        (
            r"^(?:negative|normal|unremarkable)(?: [\w-]+){0,3} (?:chest|exam\w*|study|radiographs?|x-?ray|film)\b"
            r"|^(?:chest|exam\w*|study) (?:is )?(?:negative|normal|unremarkable)\b|^(?:negative|normal)$",
            ("acute cardiopulmonary abnormality",),
        ),
    )
)
_EXCEPTION = re.compile(r"\b(?:except|otherwise|aside from|apart from|other than|but|abnormal)\b")
_ONE_LUNG = re.compile(r"\b(left|right) lung(?: is| remains| appears)?(?: \w+)? clear\b")


def normal_statements(text: str) -> list[tuple[str, str]]:
    """(finding, location) that lower-case ``text`` denies by calling its organ normal.

    A statement with an exception ("clear except for ...") denies nothing, for the exception may be the finding.
    """
    if _EXCEPTION.search(text):
        return []
    one_lung = _ONE_LUNG.search(text)
    return [
        (finding, f"{one_lung[1]} lung" if one_lung and finding == "lung opacity" else "")
        for pattern, findings in _RULES
        if pattern.search(text)
        for finding in findings
    ]
