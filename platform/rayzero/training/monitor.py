"""What a run shows while it trains: one line per interval, TensorBoard, and metrics that Ray exports to Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from ray.util.metrics import Gauge
from torch import Tensor, nn

from rayzero.config import Config
from rayzero.training.events import Events
from rayzero.training.throughput import memory_gib, peak_flops

_EXPORTED = ("loss", "lr", "grad_norm", "images_per_second", "data_wait", "checkpoint_wait", "memory_gib", "mfu")


class Monitor:
    """Counts time and images on one process and reports them on rank 0.

    ``data_wait`` is the share of the interval that the loop spent waiting for its next batch: for examples to be read,
    and to be stacked and tokenised, unless that was done in a step's time. ``checkpoint_wait`` is the share that it
    stood still for checkpoints. ``flops_per_image`` are the floating-point operations of one image, None
    where they are not known.
    """

    def __init__(
        self,
        config: Config,
        log_dir: str,
        *,
        rank: int,
        world_size: int,
        first_step: int,
        steps: int,
        flops_per_image: float | None,
    ) -> None:
        self._training, self._world_size, self._steps = config.training, world_size, steps
        self._flops_per_image = flops_per_image
        self._events = Events(log_dir, first_step=first_step) if rank == 0 else None
        self._gauges = {}
        if rank == 0:
            for name in (*_EXPORTED, "step"):
                gauge = Gauge(f"rayzero_train_{name}", f"{name} of a training run", tag_keys=("run",))
                gauge.set_default_tags({"run": config.name})
                self._gauges[name] = gauge
        self._first_step = first_step
        self._began = time.monotonic()
        self._blocked = 0.0
        self._start_interval()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def step(self, step: int, images: int, values: dict[str, float], model: nn.Module, blocked: float) -> None:
        """Log ``values`` after ``step`` steps, the last one of ``images`` images, when an interval ends there.

        ``blocked`` are the seconds that checkpoints have cost since the worker began.
        """
        self._images += images
        last = step == self._steps
        if self._events is None or (step % self._training.log_every and not last and step != self._first_step + 1):
            return
        seconds = time.monotonic() - self._interval_began
        speed = {
            "images_per_second": self._images / seconds,
            "data_wait": self._waited / seconds,
            "checkpoint_wait": (blocked - self._blocked) / seconds,
            "memory_gib": memory_gib(),
            **self._utilisation(self._images / seconds),
        }
        self._blocked = blocked
        shown = {**values, **speed, **_single_values(model)}
        self.scalars(step, {f"train/{name}": value for name, value in shown.items()})
        for name in (name for name in _EXPORTED if name in shown):
            self._gauges[name].set(shown[name])
        self._gauges["step"].set(step)
        print(self._line(step, values, speed), flush=True)
        self._start_interval()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write ``values`` to TensorBoard (rank 0)."""
        if self._events is not None:
            for name, value in values.items():
                self._events.writer.add_scalar(name, value, step)
            self._events.flush()

    def images(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Write pictures (3, H, W) in [0, 1] to TensorBoard (rank 0)."""
        if self._events is not None:
            for name, picture in pictures.items():
                self._events.writer.add_image(f"maps/{name}", picture, step)
            self._events.flush()

    def close(self) -> None:
        """Finish the event file."""
        if self._events is not None:
            self._events.close()

    def _utilisation(self, images_per_second: float) -> dict[str, float]:
        if self._flops_per_image is None:
            return {}
        rate = self._flops_per_image * images_per_second / self._world_size
        peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        return {"tflops_per_worker": rate / 1e12, **({"mfu": rate / peak} if peak else {})}

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


def _single_values(model: nn.Module) -> dict[str, float]:
    """Temperatures and biases: the parameters of one value, and the temperature that a model says it has.

    At ZeRO stage 3 a parameter lies apart between steps and is left out.
    """
    values = {name: float(p.detach()) for name, p in model.named_parameters() if p.numel() == 1}
    temperature = getattr(model, "temperature", None) if values else None
    if isinstance(temperature, Tensor) and temperature.numel() == 1:
        values["temperature"] = float(temperature.detach())
    return values
