"""Minimal semantic sentences: status, place, and no word that was not said."""

from __future__ import annotations

import statistics
import tarfile
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayzero.reports.sentences import extract_sentences
from rayzero.reports.vocabulary import BY_NAME, FINDINGS, find_mentions
from rayzero.studies.study import Report


def _texts(findings: str, impression: str = "") -> list[str]:
    return [s.text for s in extract_sentences(Report(findings=findings, impression=impression))]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        # status
        ("Cardiomegaly.", ["There is cardiomegaly"]),
        ("The heart is mildly enlarged.", ["There is cardiomegaly"]),
        ("The heart is not enlarged.", ["There is no cardiomegaly"]),
        ("No pneumothorax or pleural effusion.", ["There is no pneumothorax", "There is no pleural effusion"]),
        ("No effusion, pneumothorax, or consolidation is seen.",
         ["There is no pleural effusion", "There is no pneumothorax", "There is no consolidation"]),
        ("Pneumothorax is not seen.", ["There is no pneumothorax"]),
        ("Effusion or pneumothorax is not identified.", ["There is no pleural effusion", "There is no pneumothorax"]),
        ("No pneumothorax, but there is a small effusion.", ["There is no pneumothorax", "There is pleural effusion"]),
        ("No pneumothorax, small left effusion is present.",
         ["There is no pneumothorax", "There is pleural effusion on the left"]),
        ("No consolidation to suggest pneumonia.", ["There is no consolidation", "There is no pneumonia"]),
        ("Possible pulmonary edema.", ["There may be pulmonary edema"]),
        ("Pneumonia cannot be excluded.", ["There may be pneumonia"]),
        ("Opacity may represent atelectasis.", ["There is lung opacity", "There may be atelectasis"]),
        ("Atelectasis or scarring.", ["There may be atelectasis", "There may be scarring"]),
        ("Findings are concerning for pneumonia.", ["There may be pneumonia"]),
        ("Borderline cardiomegaly.", ["There may be cardiomegaly"]),
        # time
        ("Unchanged left pleural effusion.", ["There is pleural effusion on the left"]),
        ("No change in the small effusion.", ["There is pleural effusion"]),
        ("No significant interval change in the pulmonary edema.", ["There is pulmonary edema"]),
        ("The right pleural effusion has resolved.", ["There is no pleural effusion on the right"]),
        ("Previously seen pneumothorax has resolved.", ["There is no pneumothorax"]),
        ("Interval resolution of the pulmonary edema.", ["There is no pulmonary edema"]),
        ("History of pneumonia.", []),
        ("Follow-up to evaluate for pneumonia.", []),
        # place
        ("Atelectasis in the right lower lobe.", ["There is atelectasis in the right lower lobe"]),
        ("RLL atelectasis.", ["There is atelectasis in the right lower lobe"]),
        ("Bibasilar atelectasis.", ["There is atelectasis in both lung bases"]),
        ("Bilateral pleural effusions.", ["There is pleural effusion on both sides"]),
        ("Pleural effusions, left greater than right.", ["There is pleural effusion on both sides"]),
        ("In the left upper lobe, there is a nodule.", ["There is lung nodule in the left upper lobe"]),
        ("Nodule in the left upper lung.", ["There is lung nodule in the left upper lung"]),
        ("Atelectasis and effusion at the left base.",
         ["There is atelectasis in the left lung base", "There is pleural effusion in the left lung base"]),
        ("Left basilar opacity, likely atelectasis.",
         ["There is lung opacity in the left lung base", "There may be atelectasis in the left lung base"]),
        ("Displaced fracture of the left sixth rib.", ["There is rib fracture on the left"]),
        ("Elevated right hemidiaphragm.", ["There is elevated hemidiaphragm on the right"]),
        # all is well
        ("The lungs are clear.", ["There is no lung opacity"]),
        ("The left lung is clear.", ["There is no lung opacity in the left lung"]),
        ("The lungs are clear except for a nodule.", ["There is lung nodule"]),
        ("Heart size is normal.", ["There is no cardiomegaly"]),
        ("Heart size is upper limits of normal.", []),
        ("No acute cardiopulmonary abnormality.", ["There is no acute cardiopulmonary abnormality"]),
        ("Chronic lung disease.", []),
        ("The costophrenic angles are sharp.", ["There is no pleural effusion"]),
        # devices
        ("Left chest wall pacemaker in place.", ["There is pacemaker on the left", "There is support device"]),
        ("No lines or tubes.", ["There is no support device"]),
        # scrub tokens and numbers
        ("XXXX opacities in the XXXX left base.", ["There is lung opacity in the left lung base"]),
        ("There is a 1.5 cm nodule. 2. No edema.", ["There is lung nodule", "There is no pulmonary edema"]),
        ("", []),
    ],
)  # fmt: skip
def test_statement_becomes_sentences(report: str, expected: list[str]) -> None:
    assert _texts(report) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("airspace opacity", "airspace opacity"),
        ("infiltrate", "infiltrate"),
        ("pneumonia", "pneumonia"),
        ("pulmonary nodule", "lung nodule"),
        ("granuloma", "granuloma"),
        ("granulomatous disease", "granulomatous disease"),
        ("calcified nodule", "calcified lung nodule"),
        ("calcified granulomas", "calcified granuloma"),
        ("mass-like lesion", "lung lesion"),
        ("mediastinal mass", "mediastinal mass"),
        ("thyroid mass", "thyroid lesion"),
        ("pericardial effusion", "pericardial effusion"),
        ("subcutaneous emphysema", "subcutaneous emphysema"),
    ],
)
def test_neighbours_stay_apart(text: str, name: str) -> None:
    assert [mention.finding.name for mention in find_mentions(text)] == [name]


def test_every_name_is_a_phrase_of_its_own() -> None:
    assert len(BY_NAME) == len(FINDINGS)
    for name in BY_NAME:
        assert [mention.finding.name for mention in find_mentions(name)] == [name]


def test_sections_are_both_read_and_duplicates_dropped() -> None:
    texts = _texts("No pneumothorax. Small right effusion.", "Right effusion. No pneumothorax. Edema.")
    assert texts == ["There is no pneumothorax", "There is pleural effusion on the right", "There is pulmonary edema"]


def test_a_stated_finding_is_not_denied_as_well() -> None:
    assert _texts("No effusion.", "Small left effusion.") == ["There is pleural effusion on the left"]
    assert _texts("No right effusion.", "Left effusion.") == [
        "There is no pleural effusion on the right",
        "There is pleural effusion on the left",
    ]


@given(st.text(max_size=200))
def test_any_text_is_survived(text: str) -> None:
    for sentence in extract_sentences(Report(findings=text)):
        assert sentence.text.startswith("There ")


def _open_i() -> list[Report]:
    spec = find_spec("torchxrayvision")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torchxrayvision, which carries the Open-I reports, is not installed")
    reports = []
    with tarfile.open(Path(spec.submodule_search_locations[0]) / "data" / "NLMCXR_reports.tgz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".xml") else None
            if file is None:
                continue
            sections = {e.get("Label"): e.text or "" for e in ElementTree.parse(file).iter("AbstractText")}
            reports.append(Report(findings=sections.get("FINDINGS", ""), impression=sections.get("IMPRESSION", "")))
    return reports


def test_real_reports_of_open_i() -> None:
    reports = _open_i()
    assert len(reports) == 3955
    filled = [r for r in reports if r.findings or r.impression]
    extracted = [extract_sentences(report) for report in filled]
    assert statistics.median(len(sentences) for sentences in extracted) >= 3
    assert sum(not sentences for sentences in extracted) < 0.01 * len(filled)
    said = [(r, s) for r, sentences in zip(filled, extracted, strict=True) for s in sentences]
    assert not any("xxxx" in s.text.lower() or s.text.endswith(".") for _, s in said)
    for name, stem in {"consolidation": "consolidat", "lung mass": "mass", "calcified granuloma": "calcified"}.items():
        speakers = [r for r, s in said if s.finding == name]
        assert speakers
        assert all(stem in f"{r.findings} {r.impression}".lower() for r in speakers)
