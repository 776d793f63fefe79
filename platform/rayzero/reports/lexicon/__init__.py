"""The words that the rules know, as data: findings and their phrases, and the cues around them.

Phrases and cues are regular expressions over lower-case text in which ``<name>`` stands for one of the file's
``fragments``.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

_FRAGMENT = re.compile(r"<([a-z]+)>")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FindingEntry(_Strict):
    """One finding of ``findings.yaml``: whether a place adds to it, the wider finding it entails, its phrases."""

    located: bool = False
    kind: str = ""
    phrases: tuple[str, ...] = ()


class CueGroup(_Strict):
    """Cues of one kind that stand before a finding."""

    kind: str
    cues: tuple[str, ...]


class AfterCues(_Strict):
    """Cues that stand after a finding, by what they make of it."""

    ignored: tuple[str, ...]
    absent: tuple[str, ...]
    uncertain: tuple[str, ...]


class Cues(_Strict):
    """The whole of ``cues.yaml``."""

    fragments: dict[str, str]
    before: tuple[CueGroup, ...]
    closes_absent: tuple[str, ...]
    closes_uncertain: tuple[str, ...]
    carries_on: tuple[str, ...]
    after: AfterCues


class Findings(_Strict):
    """The whole of ``findings.yaml``."""

    fragments: dict[str, str]
    findings: dict[str, FindingEntry]


@cache
def findings() -> Findings:
    """The findings in the file's order. Raises ValueError when the file is not of its layout."""
    return Findings.model_validate(_read("findings.yaml"))


@cache
def cues() -> Cues:
    """The cues. Raises ValueError when the file is not of its layout."""
    return Cues.model_validate(_read("cues.yaml"))


def _read(name: str) -> Any:
    """The file's content with the fragments put in."""
    content = yaml.safe_load(files(__name__).joinpath(name).read_text(encoding="utf-8"))
    fragments: dict[str, str] = content["fragments"]

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return _FRAGMENT.sub(lambda match: fragments[match[1]], value)
        if isinstance(value, list):
            return [fill(item) for item in value]
        if isinstance(value, dict):
            return {key: fill(item) if item is not None else {} for key, item in value.items()}
        return value

    return fill(content)
