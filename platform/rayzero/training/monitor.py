"""What a run shows while it trains: one line per interval, and TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.tensorboard import SummaryWriter

from rayzero.config import TrainingConfig


class Monitor:
    """Counts time and images on one process and reports them on rank 0.

    ``data_wait`` is the share of the interval that the loop spent waiting for its next batch.
    """

    def __init__(self, training: TrainingConfig, log_dir: str, *, rank: int, first_step: int, steps: int) -> None:
        self._training, self._steps, self._images = training, steps, 0
        self._writer = SummaryWriter(log_dir, purge_step=first_step) if rank == 0 else None
        self._first_step = first_step
        self._began = time.monotonic()
        self._start_interval()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def step(self, step: int, images: int, values: dict[str, float]) -> None:
        """Log ``values`` after ``step`` steps, the last one of ``images`` images, when an interval ends there."""
        self._images += images
        last = step == self._steps
        if self._writer is None or (step % self._training.log_every and not last and step != self._first_step + 1):
            return
        seconds = time.monotonic() - self._interval_began
        speed = {"images_per_second": self._images / seconds, "data_wait": self._waited / seconds}
        self.scalars(step, {f"train/{name}": value for name, value in {**values, **speed}.items()})
        print(self._line(step, values, speed), flush=True)
        self._start_interval()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write ``values`` to TensorBoard (rank 0)."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        if self._writer is not None:
            self._writer.close()

    def _start_interval(self) -> None:
        self._interval_began, self._images, self._waited = time.monotonic(), 0, 0.0

    def _line(self, step: int, values: dict[str, float], speed: dict[str, float]) -> str:
        steps = self._steps
        left = (time.monotonic() - self._began) / max(1, step - self._first_step) * (steps - step)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        return (
            f"step {step}/{steps}  {numbers}  {speed['images_per_second']:.1f} images/s  "
            f"data wait {speed['data_wait']:.0%}  {left:.0f} s left"
        )
