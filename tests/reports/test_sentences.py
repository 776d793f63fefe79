"""Minimal semantic sentences: status, place, and no word that was not said."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayzero.reports.clauses import split_statements
from rayzero.reports.sentences import extract_sentences
from rayzero.reports.vocabulary import BY_NAME, FINDINGS, compile_phrases, find_mentions
from rayzero.studies.study import Report
from tests.benchmarks.open_i import archive_path, load_reports


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
        ("No visualized pneumothorax.", ["There is no pneumothorax"]),
        ("No edema, large effusion or pneumothorax is identified.",
         ["There is no pulmonary edema", "There is no pleural effusion", "There is no pneumothorax"]),
        ("No acute, displaced rib fractures are identified.", ["There is no rib fracture"]),
        ("Heart size borderline enlarged.", ["There may be cardiomegaly"]),
        ("First rib fracture not well demonstrated.", ["There is no rib fracture"]),
        # no statement about this film
        ("Please note that fractures may not be demonstrated.", []),
        ("Overlap of bones could obscure a small nodule.", []),
        ("CT is more sensitive in detecting nodules.", []),
        ("Oblique views to exclude nodule.", []),
        # time
        ("Interval resolution of previously demonstrated infiltrates.", []),
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
        ("interstitial infiltrate", "infiltrate"),
        ("airspace disease", "airspace disease"),
        ("interstitial markings", "interstitial prominence"),
        ("rib deformities", "rib deformity"),
        ("wedge deformity", "vertebral height loss"),
        ("compression deformity", "vertebral compression fracture"),
        ("bochdalek hernia", "diaphragmatic hernia"),
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


@pytest.fixture(scope="module")
def open_i() -> list[Report]:
    try:
        archive_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return [labelled.report for labelled in load_reports()]


def test_phrases_looked_up_by_prefix_are_those_of_one_pattern(open_i: list[Report]) -> None:
    """The lookup by two letters is an optimisation; the plain pattern of all phrases says what is right."""
    plain = compile_phrases(range(sum(len(finding.phrases) for finding in FINDINGS)))
    texts = {text for report in open_i[::8] for text in split_statements(f"{report.findings}\n\n{report.impression}")}
    assert len(texts) > 1000
    for text in texts:
        found = [(mention.start, mention.end) for mention in find_mentions(text)]
        assert found == [match.span() for match in plain.finditer(text)], text


def test_real_reports_of_open_i(open_i: list[Report]) -> None:
    filled = [r for r in open_i if r.findings or r.impression]
    extracted = [extract_sentences(report) for report in filled]
    assert statistics.median(len(sentences) for sentences in extracted) >= 3
    assert sum(not sentences for sentences in extracted) < 0.01 * len(filled)
    said = [(r, s) for r, sentences in zip(filled, extracted, strict=True) for s in sentences]
    assert not any("xxxx" in s.text.lower() or s.text.endswith(".") for _, s in said)
    for name, stem in {"consolidation": "consolidat", "lung mass": "mass", "calcified granuloma": "calcified"}.items():
        speakers = [r for r, s in said if s.finding == name]
        assert speakers
        assert all(stem in f"{r.findings} {r.impression}".lower() for r in speakers)
