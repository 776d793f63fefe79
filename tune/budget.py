"""How long trials are: the same number of images for each, whatever its batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rayzero.config import Config, ConfigError
from tune.space import Halving


@dataclass(frozen=True)
class Budget:
    """Images of a whole trial, and those after which trials are first compared (None: never before their end).

    Images seen at the k-th validation are at least k times ``unit`` for every batch size.
    """

    images: int
    unit: int | None

    def settings(self, config: Config) -> dict[str, Any]:
        """What makes ``config`` last so long and report so often.

        Runs that count epochs see each study once an epoch and report then: their batch size changes nothing.
        """
        training = config.training
        if training.epochs:
            return {"training.validate_every": 0}
        steps = math.ceil(self.images / training.batch_size)
        if steps == training.steps and self.unit is None:
            return {}
        # Warm-up keeps its share of the run.
        settings = {"training.steps": steps, "training.warmup_steps": training.warmup_steps * steps // training.steps}
        if self.unit is not None:
            every = math.ceil(self.unit / training.batch_size)
            settings |= {"training.validate_every": every, "training.checkpoint_every": every}
        return settings


def plan(base: Config, halving: Halving | None, *, examples: int, largest_batch: int) -> Budget:
    """The budget of trials of ``base``; ``examples`` is the number of one epoch.

    Raises ConfigError when a run is too short to compare trials as often as ``halving`` asks.
    """
    training, parts = base.training, halving.reduction**halving.rungs if halving else 1
    if training.epochs:
        # The last, partial batch of an epoch is left out: at worst all but one image of the largest.
        epoch = examples - largest_batch + 1
        if training.epochs % parts:
            raise ConfigError(
                f"training.epochs={training.epochs} is no multiple of {parts}: halving with {_words(halving)} compares "
                f"trials after whole epochs; set training.epochs={parts * math.ceil(training.epochs / parts)}"
            )
        return Budget(epoch * training.epochs, epoch * training.epochs // parts if halving else None)
    images = training.steps * training.batch_size
    if halving is None:
        return Budget(images, None)
    if images < parts * largest_batch:
        raise ConfigError(
            f"training.steps={training.steps} of {training.batch_size} images are too few for halving with "
            f"{_words(halving)}: the first comparison would come before one step of {largest_batch}"
        )
    return Budget(images, math.ceil(images / parts))


def _words(halving: Halving | None) -> str:
    return f"reduction={halving.reduction} and rungs={halving.rungs}" if halving else ""
