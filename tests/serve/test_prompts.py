"""Findings as typed, and the sentences they become."""

from __future__ import annotations

import pytest

from serve.problems import Problem
from serve.prompts import read_prompts, to_prompt
from serve.settings import Limits

LIMITS = Limits(prompts=3, prompt_chars=40)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("pneumonia", "There is pneumonia"),
        ("Pleural effusion.", "There is pleural effusion"),
        ("ET tube too low", "There is ET tube too low"),
        ("no nodule", "There is no nodule"),
        ("There is a nodule.", "There is a nodule"),
        ("there are two nodules", "there are two nodules"),
        ("braces {} and {0}", "There is braces {} and {0}"),
    ],
)
def test_a_bare_finding_is_put_into_the_template(typed: str, sentence: str) -> None:
    prompt = to_prompt(typed, "There is {}")
    assert (prompt.finding, prompt.sentence) == (typed, sentence)


def test_prompts_come_as_repeated_fields_or_as_a_json_list() -> None:
    assert read_prompts(["a  b", "c"], LIMITS) == ["a b", "c"]
    assert read_prompts(['["a", "c"]'], LIMITS) == ["a", "c"]


@pytest.mark.parametrize(
    ("fields", "slug", "field"),
    [
        ([], "invalid-prompts", "prompts"),
        (["[]"], "invalid-prompts", "prompts"),
        (["[1]"], "invalid-prompts", "prompts"),
        (["[" * 5000], "invalid-prompts", "prompts"),
        (["ok", " "], "invalid-prompts", "prompts[1]"),
        (["..."], "invalid-prompts", "prompts[0]"),
        (["a\x00b"], "invalid-prompts", "prompts[0]"),
        (["x" * 41], "invalid-prompts", "prompts[0]"),
        (["a", "b", "c", "d"], "too-many-prompts", "prompts"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(fields: list[str], slug: str, field: str) -> None:
    with pytest.raises(Problem) as caught:
        read_prompts(fields, LIMITS)
    assert (caught.value.status_code, caught.value.slug, caught.value.field) == (422, slug, field)
