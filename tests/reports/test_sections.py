"""Sections of reports, as institutions write them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from rayzero.reports.layouts import LayoutError, chexpert_plus_report, ct_rate_report, open_i_report
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


# Texts in the layout of MIMIC-CXR: a banner, indented headings, lines cut at 79 characters, blanked-out spans.
_MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough  // pneumonia?

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  ___

 FINDINGS:

 There is a small left pleural effusion.  No
 pneumothorax.  LUNGS: otherwise clear.

 IMPRESSION:

 Small left pleural effusion.
"""


def test_mimic_sections() -> None:
    report = parse_report(_MIMIC)
    expected = "There is a small left pleural effusion. No pneumothorax. LUNGS: otherwise clear."
    assert " ".join(report.findings.split()) == expected
    assert report.impression == "Small left pleural effusion."
    assert split_sections(_MIMIC)["TECHNIQUE"] == "Chest PA and lateral"


def test_mimic_addendum_above_the_report_does_not_replace_it() -> None:
    text = f"                                 FINAL REPORT\n ADDENDUM  Dictated later.\n{'_' * 60}\n{_MIMIC}"
    assert parse_report(text).impression == "Small left pleural effusion."


@pytest.mark.parametrize(
    ("heading", "section"),
    [
        ("IMPRESION", "IMPRESSION"),
        ("IMPRSSION", "IMPRESSION"),
        ("FINDIGNS", "FINDINGS"),
        ("COMPARISION", "COMPARISON"),
        ("INDICATOIN", "INDICATION"),
        ("TECHNQIUE", "TECHNIQUE"),
    ],
)
def test_misspelt_headings_count_as_what_they_resemble(heading: str, section: str) -> None:
    assert split_sections(f" HISTORY: cough\n\n {heading}: text\n")[section] == "text"


@pytest.mark.parametrize("organ", ["LUNGS", "HEART", "PLEURA", "BONES", "MEDIASTINUM", "LINES AND TUBES", "TUBES"])
def test_organs_are_no_headings(organ: str) -> None:
    assert parse_report(f" FINDINGS:\n {organ}: fine.\n IMPRESSION: b").findings == f"{organ}: fine."


def test_views_head_the_findings_only_where_nothing_else_does() -> None:
    views = " HISTORY:  Pain.\n\n PA AND LATERAL CHEST RADIOGRAPHS:  Clear lungs.\n\n IMPRESSION:  Normal.\n"
    assert parse_report(views).findings == "Clear lungs."
    both = " CHEST, TWO VIEWS:  Compared with ___.\n\n FINDINGS:  Clear lungs.\n\n CHEST:  Normal heart.\n"
    assert parse_report(both).findings.startswith("Clear lungs.")
    assert "Normal heart." in parse_report(both).findings


def test_mimic_report_without_findings_or_impression_gives_its_last_paragraph() -> None:
    text = " INDICATION:  Cough.\n\n COMPARISON:  None.\n\n The lungs are clear.\n No effusion.\n"
    assert parse_report(text).findings == "The lungs are clear. No effusion."
    assert parse_report(" INDICATION:  Cough.\n\n COMPARISON:  None.\n").findings == ""
    assert parse_report("                FINAL REPORT\n The lungs are clear.\n").findings == "The lungs are clear."


# In the layout of CheXpert Plus: numbered impressions, an end mark that holds the word itself, a summary code.
_CHEXPERT_PLUS = """NARRATIVE:
RADIOGRAPHIC EXAMINATION OF THE CHEST: 1/2/2003

CLINICAL HISTORY: 60 years of age, shortness of breath.

COMPARISON: 1/1/2003.

PROCEDURE COMMENTS: Single portable view.

FINDINGS:

Low lung volumes.

IMPRESSION:

1. PULMONARY EDEMA.

2. NO PNEUMOTHORAX.

END OF IMPRESSION:

SUMMARY: 4-POSSIBLE SIGNIFICANT ABNORMALITY

ACCESSION NUMBER:
0000001
"""


def test_chexpert_plus_text_and_columns_agree() -> None:
    impression = "1. PULMONARY EDEMA.\n\n2. NO PNEUMOTHORAX."
    from_text = chexpert_plus_report({"report": _CHEXPERT_PLUS, "section_findings": "", "section_impression": None})
    assert (from_text.findings, from_text.impression) == ("Low lung volumes.", impression)
    columns = {"report": _CHEXPERT_PLUS, "section_findings": "Low lung volumes.", "section_impression": impression}
    assert chexpert_plus_report(columns) == from_text
    alone = chexpert_plus_report({"section_impression": "Edema."})
    assert (alone.text, alone.findings, alone.impression) == ("IMPRESSION: Edema.", "", "Edema.")
    with pytest.raises(LayoutError, match="section_findings"):
        chexpert_plus_report({"path_to_image": "a"})


def test_ct_rate_row() -> None:
    row = {
        "VolumeName": "valid_1_a_1.nii.gz",
        "ClinicalInformation_EN": "Not given.",
        "Technique_EN": "Non-contrast images.",
        "Findings_EN": "Trachea is open.",
        "Impressions_EN": "Nodules.",
    }
    report = ct_rate_report(row)
    assert (report.findings, report.impression) == ("Trachea is open.", "Nodules.")
    assert report.text == "TECHNIQUE: Non-contrast images.\n\nFINDINGS: Trachea is open.\n\nIMPRESSION: Nodules."
    assert ct_rate_report({**row, "Findings_EN": "Not given.", "Impressions_EN": None}).findings == ""
    with pytest.raises(LayoutError, match="Findings_EN"):
        ct_rate_report({"VolumeName": "a"})


def test_open_i_file() -> None:
    xml = b"""<?xml version="1.0"?><eCitation><MedlineCitation><Article><Abstract>
    <AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION"/>
    <AbstractText Label="FINDINGS">Clear lungs &amp; heart.</AbstractText><AbstractText Label="IMPRESSION"/>
    </Abstract></Article></MedlineCitation></eCitation>"""
    report = open_i_report(ElementTree.fromstring(xml))
    assert (report.findings, report.impression) == ("Clear lungs & heart.", "")
    assert report.text == "COMPARISON: None.\n\nFINDINGS: Clear lungs & heart."
    with pytest.raises(LayoutError, match="'RESULTS'; known are COMPARISON"):
        open_i_report(ElementTree.fromstring('<a><AbstractText Label="RESULTS"/></a>'))
