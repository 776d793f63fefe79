"""The findings that reports name: one canonical name each, and the phrases that mean it (``lexicon/findings.yaml``).

Entries that a radiologist tells apart stay apart: an airspace opacity is not a consolidation, a nodule is not a
mass, a granuloma is not a nodule. No phrase of one entry may stand in for another.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from dataclasses import dataclass

import regex

from rayzero.reports import lexicon


@dataclass(frozen=True)
class Finding:
    """A finding: its canonical ``name``, regular expressions that mean it, and whether a place adds to it."""

    name: str
    phrases: tuple[str, ...]
    located: bool = True
    kind: str = ""
    """The wider finding that this one entails: a pacemaker is a support device."""


FINDINGS: tuple[Finding, ...] = tuple(
    Finding(name, (re.escape(name), *entry.phrases), entry.located, entry.kind)
    for name, entry in lexicon.findings().findings.items()
)
"""Every finding that can be extracted."""

BY_NAME: dict[str, Finding] = {finding.name: finding for finding in FINDINGS}

_PHRASES = sorted(
    ((phrase, index) for index, finding in enumerate(FINDINGS) for phrase in finding.phrases),
    # A longer phrase is a more specific one: "calcified granuloma" is tried before "granuloma".
    key=lambda pair: (-len(pair[0]), pair[1]),
)
_LETTERS = string.ascii_lowercase + string.digits + "- "
_WORD_START = re.compile(r"(?<![\w-])(?=[\w-])")


def compile_phrases(indices: Iterable[int]) -> re.Pattern[str]:
    """One pattern of the phrases at ``indices``; the group that matched names the phrase: ``p17``."""
    grouped = "|".join(f"(?P<p{n}>{_PHRASES[n][0]})" for n in indices)
    return re.compile(rf"(?<![\w-])(?:{grouped})(?![\w-])")


def _by_prefix() -> dict[str, re.Pattern[str]]:
    """For every two letters, the pattern of the phrases that may begin with them: most words of a text meet none."""
    starts: dict[str, list[int]] = {}
    for n, (phrase, _) in enumerate(_PHRASES):
        pattern = regex.compile(phrase)
        for first in filter(lambda letter: pattern.fullmatch(letter, partial=True), _LETTERS):
            for second in _LETTERS:
                if pattern.fullmatch(first + second, partial=True):
                    starts.setdefault(first + second, []).append(n)
    compiled = {tuple(indices): compile_phrases(indices) for indices in starts.values()}
    return {prefix: compiled[tuple(indices)] for prefix, indices in starts.items()}


_BY_PREFIX = _by_prefix()


@dataclass(frozen=True)
class Mention:
    """A finding named in a text, from ``start`` to ``end``."""

    finding: Finding
    start: int
    end: int


def find_mentions(text: str) -> list[Mention]:
    """The findings that lower-case ``text`` names, in order, without overlap."""
    mentions: list[Mention] = []
    end = 0
    for start in _WORD_START.finditer(text):
        position = start.start()
        pattern = _BY_PREFIX.get(text[position : position + 2])
        if position < end or pattern is None:
            continue
        if match := pattern.match(text, position):
            mentions.append(_mention(match))
            end = match.end()
    return mentions


def _mention(match: re.Match[str]) -> Mention:
    assert match.lastgroup is not None
    return Mention(FINDINGS[_PHRASES[int(match.lastgroup[1:])][1]], match.start(), match.end())
