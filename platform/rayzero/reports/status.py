"""Whether a text states a finding, doubts it, denies it, or says nothing of it: a small NegEx.

Cues before a finding open a scope that other words close; cues after it, up to the next finding, overrule them. The
words are in ``lexicon/cues.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rayzero.reports import lexicon
from rayzero.reports.vocabulary import Mention
from rayzero.studies.study import Status

_CUES = lexicon.cues()
_ANY = "|".join
_BEFORE = re.compile(_ANY(rf"(?P<g{n}>\b(?:{_ANY(group.cues)})(?![\w-]))" for n, group in enumerate(_CUES.before)))
_CLOSES_ABSENT = re.compile(rf"\b(?:{_ANY(_CUES.closes_absent)})\b")
_CLOSES_UNCERTAIN = re.compile(_ANY(_CUES.closes_uncertain))
# What joins two findings to one list, of which a cue after the last speaks for all.
LIST = re.compile(r"^(?:,|,? and| and/or|,? or|\s*/|,? nor)(?: \w+){0,2} ?$")
# A phrase with a verb of its own, such as "the heart is not enlarged": cues before it do not reach inside.
_OWN_STATEMENT = re.compile(r"\b(?:is|are|appears?|remains?)\b(?!.*\b(?:of|in|involving)\b)")
_OWN_DENIAL = re.compile(r"\b(?:not|no longer)\b")
_OWN_DOUBT = re.compile(r"\b(?:borderline|may|possibly|probably)\b")


def _after(cues: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"^[^,;]*?\b(?:{_ANY(cues)})\b")


_IGNORED_AFTER = _after(_CUES.after.ignored)
_ABSENT_AFTER = _after(_CUES.after.absent)
_UNCERTAIN_AFTER = _after(_CUES.after.uncertain)


def statuses(clause: str, mentions: Sequence[Mention]) -> list[Status | None]:
    """The status of each of ``mentions``, all those of ``clause`` in order; None for what is no statement.

    History, advice, questions ("evaluate for pneumonia") and what the film cannot show are no statements.
    """
    return [_status(clause, mentions, index) for index in range(len(mentions))]


def _status(clause: str, mentions: Sequence[Mention], index: int) -> Status | None:
    mention = mentions[index]
    words, tail = clause[mention.start : mention.end], clause[mention.end :]
    if _OWN_STATEMENT.search(words):
        if _OWN_DENIAL.search(words):
            return "absent"
        return "uncertain" if _OWN_DOUBT.search(words) else "present"
    if _IGNORED_AFTER.search(tail):
        return None
    if _UNCERTAIN_AFTER.search(tail):
        return "uncertain"
    if _ABSENT_AFTER.search(_own_tail(clause, mentions, index)):
        return "absent"  # before history: "the previously seen effusion has resolved"
    kinds = _open_cues(clause[: mention.start])
    if "ignored" in kinds:
        return None
    if "absent" in kinds:
        return "absent"
    return "uncertain" if "uncertain" in kinds or _OWN_DOUBT.search(words) else "present"


def _open_cues(text: str) -> set[str]:
    """The kinds of cue in ``text`` whose scope reaches its end."""
    kinds: set[str] = set()
    for match in _BEFORE.finditer(text):
        assert match.lastgroup is not None
        kind = _CUES.before[int(match.lastgroup[1:])].kind
        rest = text[match.end() :]
        if kind == "absent" and _CLOSES_ABSENT.search(rest):
            continue
        if kind == "uncertain" and match[0] not in _CUES.carries_on and _CLOSES_UNCERTAIN.search(rest):
            continue
        kinds.add(kind)
    return kinds


def _own_tail(clause: str, mentions: Sequence[Mention], index: int) -> str:
    """What follows a mention up to the next that no list joins to it: "effusion or pneumothorax is not seen"."""
    start = mentions[index].end
    for later in mentions[index + 1 :]:
        if not LIST.match(clause[start : later.start]):
            return clause[start : later.start]
        start = later.end
    return clause[start:]
