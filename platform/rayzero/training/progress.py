"""What validation says about a run: its best figure, and when to lower the learning rate or to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rayzero.config import TrainingConfig


def monitored(metrics: dict[str, float], training: TrainingConfig) -> tuple[str, float]:
    """The figure that says how good a run is, by name: training.monitor, or the loss where there is no other."""
    name = training.monitor if f"validation/{training.monitor}" in metrics else "loss"
    return name, metrics[f"validation/{name}"]


@dataclass
class Progress:
    """Part of the loop's state, so that a resumed run follows the same plateau.

    ``best`` is the best monitored figure, ``since_best`` the validations since; ``since_cut`` counts them anew after
    each reduction of the learning rate, whose product is ``rate_scale``.
    """

    best: float | None = None
    since_best: int = 0
    since_cut: int = 0
    rate_scale: float = 1.0

    def update(self, metrics: dict[str, float], training: TrainingConfig) -> None:
        """Take the figures of one validation into account."""
        name, value = monitored(metrics, training)
        sign = -1.0 if name == "loss" else 1.0
        # A lake without labels has no AUROC: not a number is never progress.
        if not math.isnan(value) and (self.best is None or sign * value > sign * self.best):
            self.best, self.since_best, self.since_cut = value, 0, 0
            return
        self.since_best += 1
        self.since_cut += 1
        if training.schedule == "plateau" and self.since_cut > training.plateau_patience:
            self.rate_scale *= training.plateau_factor
            self.since_cut = 0

    def exhausted(self, training: TrainingConfig) -> bool:
        """Whether the run should stop early."""
        return bool(training.early_stopping) and self.since_best >= training.early_stopping
