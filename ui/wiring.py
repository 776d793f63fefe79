"""What the page and its tabs wire alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ui.client import ServerError
from ui.fragments import error_box

Updates = dict[Any, Any]
"""What a listener changes: components and their new values."""

# Buttons inside our own HTML say which of them was pressed; one listener outlives every redraw of the content.
PICK = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (button) trigger('click', {pick: button.dataset.pick});
});"""


def script(name: str) -> str:
    """A script of this package."""
    return (Path(__file__).parent / name).read_text()


def or_error(work: Callable[[], str]) -> str:
    """The HTML that ``work`` makes, or what the server says instead."""
    try:
        return work()
    except ServerError as error:
        return error_box(error)
