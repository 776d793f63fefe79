"""What can go wrong between a file and the lake. Each message is one sentence that names the remedy."""

from __future__ import annotations

import re


class StudyFileError(ValueError):
    """A file cannot become a study's image. ``stage`` is the step that refused it: open, header, decode or pixels."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage = stage
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class CorpusError(ValueError):
    """A corpus is unknown, absent, or its tables do not have the published layout."""


class LakeError(RuntimeError):
    """A lake is missing, of another schema version, damaged, or lacks what was asked of it."""


def shown(value: object) -> str:
    """A value of a header for a message where it is a code, a UID or numbers, and so no name.

    A damaged length may let any value swallow the elements that follow it, with the patient's name among them.
    """
    text = str(value)
    return text if re.fullmatch(r"[A-Z0-9_.,+\-\[\]' ]{1,64}", text) else "unreadable"
