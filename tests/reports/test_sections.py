"""Sections of reports, as institutions write them."""

from __future__ import annotations

import pytest

from rayzero.reports.sections import parse_report, split_sections


def test_named_sections_are_split() -> None:
    text = "EXAMINATION: Chest\n\nINDICATION: Cough.\n\nCOMPARISON: None.\n\n"
    text += "FINDINGS: Clear\nlungs.\n\nIMPRESSION: Normal."
    assert split_sections(text) == {
        "EXAMINATION": "Chest",
        "INDICATION": "Cough.",
        "COMPARISON": "None.",
        "FINDINGS": "Clear\nlungs.",
        "IMPRESSION": "Normal.",
    }


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("FINDINGS: a IMPRESSION: b", "a", "b"),
        ("Findings: a\nImpression: b", "a", "b"),
        ("FINDINGS: first\nFINDINGS: last", "last", ""),
        ("FINDINGS: kept\nFINDINGS:\nIMPRESSION: b", "kept", "b"),
        ("no headings at all", "no headings at all", ""),
        ("FINDINGS: LUNGS: clear. HEART: normal.", "LUNGS: clear. HEART: normal.", ""),
        ("HISTORY: pneumonia\nCONCLUSION: b", "", "b"),
        ("FINDINGS AND IMPRESSION: both", "both", ""),
        ("FINDINGS: a\nRECOMMENDATION: CT", "a", ""),
        ("", "", ""),
    ],
)
def test_findings_and_impression(text: str, findings: str, impression: str) -> None:
    report = parse_report(text)
    assert (report.text, report.findings, report.impression) == (text, findings, impression)
