"""An exponential moving average of the trained weights, which validation and export use in place of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = "average.safetensors"


class Average:
    """``decay * average + (1 - decay) * weights`` after each step, in fp32; each process holds the whole of it.

    The decay of the first steps is smaller, (1 + step) / (10 + step), or the start would stay in the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().float().clone() for name, p in self._trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after ``step`` steps in."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._trained.items():
            self._average[name].lerp_(parameter.float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        weights = {name: parameter.detach().clone() for name, parameter in self._trained.items()}
        self._give(self._average)
        try:
            yield
        finally:
            self._give(weights)

    def save(self, folder: Path) -> None:
        """Write the average to ``folder``."""
        save_file({name: value.cpu().contiguous() for name, value in self._average.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        for name, value in load_file(folder / FILE).items():
            self._average[name].copy_(value)

    @torch.no_grad()
    def _give(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.copy_(values[name])
