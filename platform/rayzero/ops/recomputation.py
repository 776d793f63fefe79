"""What a backward pass computes again because it was not kept: no use of a model, so a FLOP counter leaves it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Of a thread: backward passes on a GPU run on one of their own.
_AGAIN: ContextVar[bool] = ContextVar("again", default=False)


@contextmanager
def computed_again() -> Iterator[None]:
    """What runs in here has run before."""
    before = _AGAIN.set(True)
    try:
        yield
    finally:
        _AGAIN.reset(before)


def is_computed_again() -> bool:
    """Whether what runs now has run before."""
    return _AGAIN.get()
