"""What validation says about a run: its best figure, and when to lower the learning rate or to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rayzero.config import TrainingConfig


def score(figures: dict[str, float], training: TrainingConfig) -> float | None:
    """How good a run is by the ``figures`` of a validation, the higher the better; None where that is no finite number.

    It is training.monitor, or less the loss where there is no such figure.
    """
    name = training.monitor if f"validation/{training.monitor}" in figures else "loss"
    value = figures[f"validation/{name}"]
    if not math.isfinite(value):
        return None
    return -value if name == "loss" else value


@dataclass
class Progress:
    """Part of the loop's state, so that a resumed run follows the same plateau.

    ``best_score`` is the best ``score``, ``since_best`` the validations since; ``since_cut`` counts them anew after
    each reduction of the learning rate, whose product is ``rate_scale``.
    """

    best_score: float | None = None
    since_best: int = 0
    since_cut: int = 0
    rate_scale: float = 1.0

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Progress:
        """From ``dataclasses.asdict``, also of checkpoints that kept ``best``: a loss there may have been the lower."""
        return cls(**{name: value for name, value in values.items() if name != "best"})

    def update(self, reached: float | None, training: TrainingConfig) -> None:
        """Take the ``score`` of one validation into account; none (a lake without labels) is never progress."""
        if reached is not None and (self.best_score is None or reached > self.best_score):
            self.best_score, self.since_best, self.since_cut = reached, 0, 0
            return
        self.since_best += 1
        self.since_cut += 1
        if training.schedule == "plateau" and self.since_cut > training.plateau_patience:
            self.rate_scale *= training.plateau_factor
            self.since_cut = 0

    def exhausted(self, training: TrainingConfig) -> bool:
        """Whether the run should stop early."""
        return bool(training.early_stopping) and self.since_best >= training.early_stopping
