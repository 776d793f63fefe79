"""Findings as a reader types them, and the sentences that a model was trained to score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from serve.problems import Problem
from serve.settings import Limits


@dataclass(frozen=True)
class Prompt:
    """``finding`` as typed, whitespace tidied, and the ``sentence`` that the model scores."""

    finding: str
    sentence: str


def read_prompts(fields: Sequence[str], limits: Limits) -> list[str]:
    """The findings in repeated form fields, or in one field that holds a JSON list of them.

    Raises Problem (422) for none, too many, a blank one, one that is too long, or a malformed list.
    """
    texts = _from_json(fields[0]) if len(fields) == 1 and fields[0].lstrip().startswith("[") else list(fields)
    if not texts:
        raise Problem(422, "invalid-prompts", "Give at least one finding, such as pneumonia.", field="prompts")
    if len(texts) > limits.prompts:
        detail = f"{len(texts)} findings were sent; one query takes at most {limits.prompts}."
        raise Problem(422, "too-many-prompts", detail, field="prompts")
    return [_clean(text, f"prompts[{index}]", limits) for index, text in enumerate(texts)]


def read_text(text: str, field: str, limits: Limits) -> str:
    """One free text, tidied and within limits. Raises Problem (422)."""
    return _clean(text, field, limits)


def to_prompt(finding: str, template: str) -> Prompt:
    """``finding`` put into ``template`` ("There is {}"), unless it is a sentence that begins with "There" already."""
    bare = finding.rstrip(".").rstrip()
    if bare.lower().startswith("there "):
        return Prompt(finding, bare)
    first, _, rest = bare.partition(" ")
    # "Pleural effusion" reads on as "There is pleural effusion", but acronyms and names such as "ET tube" stay.
    if first[1:].islower():
        first = first.lower()
    return Prompt(finding, template.replace("{}", f"{first} {rest}".rstrip()))


def _from_json(text: str) -> list[str]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise Problem(
            422, "invalid-prompts", "prompts looks like a JSON list but is malformed.", field="prompts"
        ) from None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Problem(422, "invalid-prompts", "prompts must be a list of texts.", field="prompts")
    return values


def _clean(text: str, field: str, limits: Limits) -> str:
    if len(text) > limits.prompt_chars:
        detail = f"The text has {len(text)} characters; at most {limits.prompt_chars} are read."
        raise Problem(422, "invalid-prompts", detail, field=field)
    tidy = " ".join(text.split())
    if not any(character.isalnum() for character in tidy):
        raise Problem(422, "invalid-prompts", "The text is blank; write a finding, such as pneumonia.", field=field)
    if not tidy.isprintable():
        raise Problem(422, "invalid-prompts", "The text holds characters that cannot be printed.", field=field)
    return tidy
