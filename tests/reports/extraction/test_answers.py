"""What a model may answer: one strict form, checked whatever the server promised."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rayzero.reports.extraction.answers import AnswerError, answer_schema, messages, read_answer
from rayzero.reports.extraction.styles import NORMAL, STYLES, Style, find_style
from rayzero.reports.sentences import extract_sentences
from rayzero.studies.study import Report

MINIMAL, SUMMARY, ALIGNMENT = (STYLES[name] for name in ("minimal", "summary", "alignment"))


def _answer(finding: Any = "edema", status: Any = "present", location: Any = "", **more: Any) -> str:
    return json.dumps({"statements": [{"finding": finding, "status": status, "location": location, **more}]})


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (_answer(), "There is edema"),
        (_answer("Pulmonary  Edema."), "There is pulmonary edema"),
        (_answer("nodule", "uncertain", "in the right upper lobe"), "There may be nodule in the right upper lobe"),
        (_answer("effusion", "absent", "Left"), "There is no effusion on the left"),
        ("```json\n" + _answer() + "\n```", "There is edema"),
    ],
)
def test_answers_become_sentences_of_one_shape(answer: str, text: str) -> None:
    assert [s.text for s in read_answer(answer, MINIMAL)] == [text]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "Invalid JSON"),
        ("There is edema.", "Invalid JSON"),
        (_answer()[:-2], "Invalid JSON"),
        (f"Here you are: {_answer()}", "Invalid JSON"),
        ("[]", "statements|valid dictionary|object"),
        ('{"key_phrases": []}', "statements: Field required"),
        (json.dumps({"statements": [], "note": "x"}), "note: Extra inputs"),
        (_answer(size="2 cm"), "statements.0.size: Extra inputs"),
        (_answer(finding=3), "statements.0.finding"),
        (_answer(finding=" . "), "blank"),
        (_answer(finding="There is edema"), "not a finding"),
        (_answer(finding="new edema"), "compares with an earlier examination"),
        (_answer(finding="x" * 81), "at most 80"),
        (_answer(status="probable"), "statements.0.status"),
        (_answer(location=None), "statements.0.location"),
        (json.dumps({"statements": [{"finding": "edema", "status": "present"}]}), "location: Field required"),
        (json.dumps({"statements": json.loads(_answer())["statements"] * 65}), "at most 64"),
        ("__import__('os').system('true')", "Invalid JSON"),
    ],
)
def test_anything_else_is_refused_with_its_reason(answer: str, reason: str) -> None:
    with pytest.raises(AnswerError, match=reason):
        read_answer(answer, MINIMAL)


def test_styles_have_their_own_statuses_and_places() -> None:
    with pytest.raises(AnswerError, match="not of the style 'summary'"):
        read_answer(_answer(status="absent"), SUMMARY)
    assert [s.text for s in read_answer(_answer(location="left lung"), ALIGNMENT)] == ["There is edema"]
    assert read_answer('{"statements": []}', SUMMARY) == (NORMAL,)
    assert read_answer('{"statements": []}', MINIMAL) == ()


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
def test_schema_and_example_agree_with_what_is_accepted(style: Style) -> None:
    schema = answer_schema(style)
    statement = schema["$defs"]["Statement"]
    assert statement["properties"]["status"]["enum"] == list(style.statuses)
    assert statement["additionalProperties"] is schema["additionalProperties"] is False
    assert set(statement["required"]) == {"finding", "status", "location"}
    system, question, example, asked = messages(Report(findings="x", impression="y"), style)
    assert style.task in system["content"]
    assert len(read_answer(example["content"], style)) == len(style.example[1])
    assert question["content"] == style.example[0]
    assert asked["content"] == "FINDINGS: x\nIMPRESSION: y"


def test_rules_in_each_style() -> None:
    report = Report(findings="Small left pleural effusion. Possible pneumonia at the right base. No pneumothorax.")
    sentences = extract_sentences(report)
    texts = {name: [s.text for s in style.conform(sentences)] for name, style in STYLES.items()}
    assert texts == {
        "minimal": [
            "There is pleural effusion on the left",
            "There may be pneumonia in the right lung base",
            "There is no pneumothorax",
        ],
        "alignment": ["There is pleural effusion", "There is no pneumothorax"],
        "summary": ["There is pleural effusion"],
    }


def test_a_summary_says_that_all_is_well_only_where_all_is_denied() -> None:
    def summary(findings: str) -> tuple[object, ...]:
        return SUMMARY.conform(extract_sentences(Report(findings=findings)))

    assert summary("The lungs are clear. No effusion.") == (NORMAL,)
    assert summary("Possible pneumonia.") == ()
    assert summary("Film of poor quality.") == ()


def test_an_unknown_style_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'minimal'"):
        find_style("minimel")
