"""What a training run raises for its user."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training ended without a result; the message says at which point and why."""


def last_line(failure: Exception) -> str:
    """The cause of a worker's failure, without the traceback before it that Ray has printed already."""
    return (str(failure).strip().splitlines() or [type(failure).__name__])[-1]
