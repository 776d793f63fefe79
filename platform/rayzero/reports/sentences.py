"""Report text -> minimal semantic sentences: one finding, its status, and where (RadZero, section 3.1).

Sentences are built from canonical names, so that equal statements are equal strings, and they speak of the current
film alone: words of comparison ("new", "unchanged") never reach them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from rayzero.reports import locations
from rayzero.reports.clauses import split_clauses, split_statements
from rayzero.reports.normal import normal_statements
from rayzero.reports.status import LIST, statuses
from rayzero.reports.vocabulary import Mention, find_mentions
from rayzero.studies.study import Report, Sentence, Status

_ALTERNATIVE = re.compile(r"^(?:,? or|,? versus|,? vs\.?|\s*/)(?: \w+){0,2} ?$")
_OTHER_ORGAN = re.compile(r"\b(?:bones?|bony|osseous|skelet\w+|ribs?|spine|vertebra\w*|abdom\w+|soft tissues?)\b")
_EXPLAINS = re.compile(
    r"\b(?:represent\w*|consistent with|compatible with|suggest\w*|reflect\w*|likely|concerning for)\b"
)
_SHAPES: dict[Status, str] = {
    "present": "There is {}{}",
    "uncertain": "There may be {}{}",
    "absent": "There is no {}{}",
}


@dataclass(frozen=True)
class _Statement:
    mention: Mention
    status: Status | None
    location: str


def extract_sentences(report: Report) -> tuple[Sentence, ...]:
    """The minimal sentences of the findings, then of the impression, each once.

    A finding that the report states somewhere is not also denied: "no effusion" beside "small left effusion" is
    dropped unless the denial names another place.
    """
    found: dict[str, Sentence] = {}
    for section in (report.findings, report.impression):
        for text in split_statements(section):
            for sentence in read_statement(text):
                found.setdefault(sentence.text, sentence)
    stated = {(s.finding, s.location) for s in found.values() if s.status != "absent"}
    findings = {finding for finding, _ in stated}
    return tuple(
        s
        for s in found.values()
        if s.status != "absent" or not (s.finding in findings and (not s.location or (s.finding, s.location) in stated))
    )


def make_sentence(finding: str, status: Status, location: str = "") -> Sentence:
    """The minimal sentence of a canonical finding name, in the shape that every report uses."""
    text = _SHAPES[status].format(finding, locations.phrase(location))
    return Sentence(text=text, status=status, finding=finding, location=location)


@lru_cache(maxsize=1 << 14)  # reports repeat themselves: of 22,867 sentences in Open-I, 8,452 differ
def read_statement(text: str) -> tuple[Sentence, ...]:
    """The minimal sentences of one sentence of a report, as ``split_statements`` gives it."""
    sentences = [make_sentence(finding, "absent", place) for finding, place in normal_statements(text)]
    for clause in split_clauses(text):
        for statement in _statements(clause):
            if statement.status is None or _is_vague(statement, clause):
                continue
            finding = statement.mention.finding
            place = statement.location if finding.located else ""
            sentences.append(make_sentence(finding.name, statement.status, place))
            if finding.kind and statement.status != "absent":
                sentences.append(make_sentence(finding.kind, statement.status))
    return tuple(sentences)


def _is_vague(statement: _Statement, clause: str) -> bool:
    """Whether an "abnormality" is of no known organ: "chronic lung disease", or "no acute abnormality" of the spine."""
    name = statement.mention.finding.name
    if name not in ("acute cardiopulmonary abnormality", "acute bony abnormality"):
        return False
    words = clause[statement.mention.start : statement.mention.end]
    if name == "acute cardiopulmonary abnormality" and len(words.split()) == 2 and _OTHER_ORGAN.search(clause):
        return True
    return statement.status != "absent" and not re.match("acute|active", words)


def _statements(clause: str) -> list[_Statement]:
    mentions = find_mentions(clause)
    result: list[_Statement] = []
    for index, (mention, status) in enumerate(zip(mentions, statuses(clause, mentions), strict=True)):
        left = mentions[index - 1].end if index else 0
        right = mentions[index + 1].start if index + 1 < len(mentions) else len(clause)
        place = (
            locations.within(clause[mention.start : mention.end])
            or locations.before(clause[left : mention.start])
            or locations.after(clause[mention.end : right])
        )
        result.append(_Statement(mention, status, place))
    return _share(clause, result)


def _share(clause: str, statements: list[_Statement]) -> list[_Statement]:
    """What neighbours pass on: "A or B" is uncertain, a list shares a place, an explanation lies where its sign is."""
    shared = list(statements)
    for index in range(len(shared) - 2, -1, -1):
        one, two = shared[index], shared[index + 1]
        between = clause[one.mention.end : two.mention.start]
        if _ALTERNATIVE.match(between) and {one.status, two.status} in ({"present"}, {"present", "uncertain"}):
            one, two = (
                _Statement(one.mention, "uncertain", one.location),
                _Statement(two.mention, "uncertain", two.location),
            )
        if LIST.match(between) and not one.location and locations.after(clause[two.mention.end :]):
            one = _Statement(one.mention, one.status, two.location)
        shared[index], shared[index + 1] = one, two
    for index in range(1, len(shared)):
        one, two = shared[index - 1], shared[index]
        between = clause[one.mention.end : two.mention.start]
        if not two.location and _EXPLAINS.search(between):
            shared[index] = _Statement(two.mention, two.status, one.location)
        elif one.status == two.status == "uncertain" and _ALTERNATIVE.match(between):
            shared[index] = _Statement(two.mention, two.status, two.location or one.location)
    return shared
