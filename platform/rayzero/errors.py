"""What another library's error says, as a part of a message of ours."""

from __future__ import annotations

_MOST_CHARACTERS = 200


def first_line(error: BaseException) -> str:
    """The first line of the message of ``error``, short enough for a table cell; of one without a message its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip()[:_MOST_CHARACTERS]
