"""The findings that reports name: one canonical name each, and the phrases that mean it (``lexicon/findings.yaml``).

Entries that a radiologist tells apart stay apart: an airspace opacity is not a consolidation, a nodule is not a
mass, a granuloma is not a nodule. No phrase of one entry may stand in for another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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
_GROUPED = "|".join(f"(?P<p{n}>{phrase})" for n, (phrase, _) in enumerate(_PHRASES))
_PATTERN = re.compile(rf"(?<![\w-])(?:{_GROUPED})(?![\w-])")


@dataclass(frozen=True)
class Mention:
    """A finding named in a text, from ``start`` to ``end``."""

    finding: Finding
    start: int
    end: int


def find_mentions(text: str) -> list[Mention]:
    """The findings that lower-case ``text`` names, in order, without overlap."""
    mentions = []
    for match in _PATTERN.finditer(text):
        assert match.lastgroup is not None
        index = _PHRASES[int(match.lastgroup[1:])][1]
        mentions.append(Mention(FINDINGS[index], match.start(), match.end()))
    return mentions
