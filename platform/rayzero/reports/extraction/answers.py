"""What a language model is asked, and what of its answer is accepted.

The answer is JSON of one schema, which the server is asked to enforce and which is checked here all the same. The
sentence itself is never the model's: it is composed from finding, status and place, so that every strategy writes
the same shapes.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rayzero.reports.extraction.styles import NORMAL, Style, report_text
from rayzero.reports.sentences import make_sentence
from rayzero.studies.study import Report, Sentence, Status

MAX_STATEMENTS = 64
_SYSTEM = (
    "You read radiology reports. {task} Speak of the current examination alone: drop comparisons with earlier ones, "
    "and words such as new, stable, improved or worsened. Say nothing that the report does not say; skip history, "
    "technique and advice. Write findings in lower case, as short noun phrases. Answer with JSON alone, of this form: "
    '{{"statements": [{{"finding": "...", "status": {statuses}, "location": "..."}}]}}. '
    "An empty list is a valid answer."
)
_COMPARISON = re.compile(
    r"\b(?:new|newly|unchanged|stable|improv(?:ed|ing)|worsen(?:ed|ing)|resol(?:ved|ving)|interval|persistent|again)\b"
)
_FENCE = re.compile(r"^\s*```(?:json)?\s*|\s*```\s*$")


class AnswerError(ValueError):
    """A model's answer is not what was asked for."""


def _finding(text: str) -> str:
    phrase = " ".join(text.lower().split()).strip(" .")
    if not phrase:
        raise ValueError("the finding is blank")
    if re.match(r"there (?:is|are|may)\b|no\b", phrase):
        raise ValueError(f"{phrase!r} is a sentence, not a finding")
    if word := _COMPARISON.search(phrase):
        raise ValueError(f"{phrase!r} compares with an earlier examination ({word[0]})")
    return phrase


def _location(text: str) -> str:
    return re.sub(r"^(?:in|at|on|of|within) (?:the )?|^the ", "", " ".join(text.lower().split()).strip(" ."))


class Statement(BaseModel):
    """One finding, its status, and where."""

    model_config = ConfigDict(extra="forbid", strict=True)

    finding: Annotated[str, Field(min_length=2, max_length=80), AfterValidator(_finding)]
    status: Status
    location: Annotated[str, Field(max_length=60), AfterValidator(_location)]


class Answer(BaseModel):
    """All that a model may say about a report."""

    model_config = ConfigDict(extra="forbid", strict=True)

    statements: Annotated[list[Statement], Field(max_length=MAX_STATEMENTS)]


@cache
def answer_schema(style: Style) -> dict[str, Any]:
    """The JSON schema of an answer in ``style``: no other keys, and no status that the style has no use for."""
    schema = Answer.model_json_schema()
    schema["$defs"]["Statement"]["properties"]["status"]["enum"] = list(style.statuses)
    return schema


def messages(report: Report, style: Style) -> list[dict[str, str]]:
    """The conversation that asks for ``report`` in ``style``: instructions, one worked example, the report."""
    statuses = " or ".join(f'"{status}"' for status in style.statuses)
    text, statements = style.example
    fields = Statement.model_fields
    answer = {"statements": [dict(zip(fields, statement, strict=True)) for statement in statements]}
    return [
        {"role": "system", "content": _SYSTEM.format(task=style.task, statuses=statuses)},
        {"role": "user", "content": text},
        {"role": "assistant", "content": json.dumps(answer)},
        {"role": "user", "content": report_text(report)},
    ]


def read_answer(text: str, style: Style) -> tuple[Sentence, ...]:
    """The sentences of a model's answer. Raises AnswerError saying what is wrong with it.

    A Markdown fence around the JSON is tolerated; nothing else is repaired.
    """
    try:
        answer = Answer.model_validate_json(_FENCE.sub("", text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AnswerError(f"{where + ': ' if where else ''}{first['msg']}") from None
    for statement in answer.statements:
        if statement.status not in style.statuses:
            allowed = ", ".join(style.statuses)
            raise AnswerError(f"the status {statement.status!r} is not of the style {style.name!r} ({allowed})")
    if not answer.statements and style.never_empty:
        return (NORMAL,)
    return style.conform(make_sentence(s.finding, s.status, s.location) for s in answer.statements)
