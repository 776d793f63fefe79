"""What a training run raises for its user."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training ended without a result; the message says at which point and why."""
