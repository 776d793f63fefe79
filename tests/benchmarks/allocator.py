"""What keeping freed memory saves: ``python -m tests.benchmarks.allocator [--out FILE]``.

Two processes do the same on the CPU in turn, one with the environment that replicas of models get (``KEPT_MEMORY``).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch

from rayzero.alignment import registry
from rayzero.alignment.base import AlignmentModel
from rayzero.config import Config, VisionConfig
from serve.allocator import KEPT_MEMORY
from tests.benchmarks.harness import Row, paired_medians, report, seconds


def encode(images: int, resolution: int) -> float:
    """Seconds of a pass over ``images``, without gradients."""
    model, pixels = _model(resolution), torch.rand(images, 1, resolution, resolution)
    with torch.no_grad():
        model.encode_image(pixels)
        return seconds(lambda: model.encode_image(pixels))


@cache
def _model(resolution: int) -> AlignmentModel:
    return registry.build(registry.resolve(Config(vision=VisionConfig(resolution=resolution)))).eval()


def process(*, kept: bool) -> ProcessPoolExecutor:
    """One new process, with KEPT_MEMORY or, whatever this one has, without."""
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    plain = {name: value for name, value in os.environ.items() if name not in KEPT_MEMORY}
    with patch.dict(os.environ, {**plain, **KEPT_MEMORY} if kept else plain, clear=True):
        pool.submit(os.getpid).result()
    return pool


def rows(rounds: int) -> list[Row]:
    """The rows of the table."""
    with process(kept=True) as kept, process(kept=False) as plain:
        return [
            Row(
                f"pass over 4 images of {resolution} px, s",
                *paired_medians(
                    lambda resolution=resolution: kept.submit(encode, 4, resolution).result(),
                    lambda resolution=resolution: plain.submit(encode, 4, resolution).result(),
                    rounds=rounds,
                ),
            )
            for resolution in (224, 512)
        ]


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.allocator", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args()
    report("allocator", rows(options.rounds), options.out, note="small RadZero, ours with freed memory kept")


if __name__ == "__main__":
    main()
