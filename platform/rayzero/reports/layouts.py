"""Reports as the tables and files of published corpora hold them.

MIMIC-CXR's text files need no layout of their own: ``sections.parse_report`` reads them.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping

from rayzero.reports.sections import parse_report
from rayzero.studies.study import Report

CT_RATE_SECTIONS = {
    "INDICATION": "ClinicalInformation_EN",
    "TECHNIQUE": "Technique_EN",
    "FINDINGS": "Findings_EN",
    "IMPRESSION": "Impressions_EN",
}
"""Section -> column of CT-RATE\'s ``*_reports.csv``."""
_OPEN_I_SECTIONS = ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION")


class LayoutError(ValueError):
    """A row or file is not of the corpus's published layout."""


def open_i_report(root: ElementTree.Element) -> Report:
    """The report of one parsed Open-I file (``ecgen-radiology/1.xml``). Raises LayoutError for an unknown section."""
    sections: dict[str, str] = {}
    for element in root.iter("AbstractText"):
        label = element.get("Label", "")
        if label not in _OPEN_I_SECTIONS:
            raise LayoutError(f"AbstractText has Label {label!r}; known are {', '.join(_OPEN_I_SECTIONS)}")
        sections[label] = " ".join("".join(element.itertext()).split())
    return _compose({name: sections.get(name, "") for name in _OPEN_I_SECTIONS})


def chexpert_plus_report(row: Mapping[str, str | None]) -> Report:
    """The report of one row of CheXpert Plus: its sections where they are given, else those of the whole text.

    Raises LayoutError without any of the columns.
    """
    _require(row, ("report", "section_findings", "section_impression"))
    text, findings, impression = (_cell(row, name) for name in ("report", "section_findings", "section_impression"))
    if not findings and not impression:
        return parse_report(text)
    if not text:
        return _compose({"FINDINGS": findings, "IMPRESSION": impression})
    return Report(text=text, findings=findings, impression=impression)


def ct_rate_report(row: Mapping[str, str | None]) -> Report:
    """The report of one row of CT-RATE's ``*_reports.csv``, in which "Not given." stands for none.

    Raises LayoutError without the columns.
    """
    _require(row, tuple(CT_RATE_SECTIONS.values()), every=True)
    return _compose({name: _cell(row, column) for name, column in CT_RATE_SECTIONS.items()})


def _compose(sections: Mapping[str, str]) -> Report:
    """A report whose text is the ``sections`` that have any, under their names."""
    text = "\n\n".join(f"{name}: {body}" for name, body in sections.items() if body)
    return Report(text=text, findings=sections["FINDINGS"], impression=sections["IMPRESSION"])


def _cell(row: Mapping[str, str | None], column: str) -> str:
    """A cell's text; "" for what the corpora write in place of none."""
    text = (row.get(column) or "").strip()
    return "" if text.lower().rstrip(".") in ("not given", "nan", "none", "n/a") else text


def _require(row: Mapping[str, str | None], columns: tuple[str, ...], *, every: bool = False) -> None:
    missing = [column for column in columns if column not in row]
    if missing and (every or len(missing) == len(columns)):
        raise LayoutError(f"the row lacks the column(s) {', '.join(missing)}")
