"""A part of another library's message fits into a line of ours."""

from __future__ import annotations

import pytest

from rayzero.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("\n no such model \nsee the log\n", "no such model"),
        ("", "OSError"),
        (" \n", "OSError"),
        ("x" * 5000, "x" * 200),
    ],
)
def test_the_first_line_of_an_error_is_never_empty_and_never_long(message: str, line: str) -> None:
    assert first_line(OSError(message)) == line
