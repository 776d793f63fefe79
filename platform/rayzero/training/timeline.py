"""How long a run lasts, how large its batches are and what its learning rate is, step by step.

Recipes are published in epochs. An epoch is one pass over the training examples with its last, partial batch left
out, so its steps follow from the size of the data and of the batch; all is settled before the first step.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from functools import cached_property

from rayzero.config import ConfigError, TrainingConfig


@dataclass(frozen=True)
class Timeline:
    """The steps of a run of ``training`` over ``examples`` training examples; steps count from 0."""

    training: TrainingConfig
    examples: int

    def __post_init__(self) -> None:
        if self.training.epochs and self.examples < self.training.largest_batch:
            raise ConfigError(
                f"training.epochs={self.training.epochs}: an epoch of {self.examples} examples holds no batch of "
                f"{self.training.largest_batch}; lower training.batch_size or give training.steps"
            )

    @cached_property
    def _epoch_starts(self) -> list[int]:
        """The first step of each epoch, and the step after the last."""
        starts = [0]
        for epoch in range(self.training.epochs):
            starts.append(starts[-1] + self.examples // self._epoch_batch(epoch))
        return starts

    def _epoch_batch(self, epoch: int) -> int:
        sizes = [size for first, size in self.training.batch_growth if first <= epoch]
        return sizes[-1] if sizes else self.training.batch_size

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self._epoch_starts[-1] if self.training.epochs else self.training.steps

    def batch_size(self, step: int) -> int:
        """Images of ``step`` over all workers."""
        if not self.training.epochs:
            return self.training.batch_size
        return self._epoch_batch(bisect.bisect_right(self._epoch_starts, step) - 1)

    def share(self, step: int, rank: int, workers: int) -> int:
        """Images of ``step`` for one of ``workers`` workers; shares differ by one image at most."""
        size = self.batch_size(step)
        return size // workers + (rank < size % workers)

    def ends_epoch(self, step: int) -> bool:
        """Whether ``step`` steps make whole epochs; never where the run is counted in steps."""
        return bool(self.training.epochs) and step in self._epoch_starts[1:]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then cosine to 0 or constant; a plateau's reductions come on top of the constant."""
        training = self.training
        warmup = self._step_of(training.warmup_epochs) if training.warmup_epochs else training.warmup_steps
        if step < warmup:
            return training.lr * (step + 1) / warmup
        if training.schedule != "cosine":
            return training.lr
        end = self._step_of(training.schedule_epochs) if training.schedule_epochs else self.steps
        progress = (step - warmup) / max(1, end - warmup)
        return training.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    def _step_of(self, epochs: int) -> int:
        """The first step after ``epochs`` epochs, which may lie beyond the end of the run."""
        starts = self._epoch_starts
        beyond = max(0, epochs - self.training.epochs)
        return starts[min(epochs, self.training.epochs)] + beyond * (self.examples // self._epoch_batch(epochs))
