"""One op at one size beside the formula as published, and the bars it must reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.benchmarks.harness import Problem, Row, forward_backward, paired_seconds, peak_bytes, saved_bytes


@dataclass(frozen=True)
class Case:
    """What is measured: ``build`` makes the problem on a device; a figure without a bar is not measured.

    ``build`` is a module-level function: peak memory is measured in a process of its own, which imports it.
    """

    name: str
    build: Callable[[torch.device], Problem]
    saved: float | None = None
    peak: float | None = None
    seconds: float | None = None
    devices: tuple[str, ...] = ("cpu",)
    extra: Callable[[str, Problem, float], list[Row]] | None = None  # device, problem, our seconds

    def measure(self, device: str, rounds: int) -> list[Row]:
        """Ours against the plain formula: forward plus backward, at most ``bar`` times the plain figure."""
        rows = []
        if self.peak is not None:
            ours, other = (peak_bytes(self.build, which, device) for which in ("ours", "other"))
            rows.append(Row(f"{self.name}: peak bytes above inputs and gradients", ours, other, self.peak))
        problem = self.build(torch.device(device))
        if self.saved is not None:
            ours, other = (saved_bytes(work, problem.inputs) for work in (problem.ours, problem.other))
            rows.insert(0, Row(f"{self.name}: bytes autograd saves beyond inputs", ours, other, self.saved))
        if self.seconds is not None:
            fast, plain = paired_seconds(
                lambda: forward_backward(problem.ours, problem.inputs),
                lambda: forward_backward(problem.other, problem.inputs),
                rounds=rounds,
                device=device,
            )
            rows.append(Row(f"{self.name}: seconds, forward + backward", fast, plain, self.seconds))
            if self.extra is not None:
                rows += self.extra(device, problem, fast)
        return rows
