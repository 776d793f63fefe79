"""How fast images reach a training process: ``python -m tests.benchmarks.loading [--out FILE]``.

Films of 512 x 512 pixels go from a lake through Ray Data to batches at the quickstart's resolution. The other figure
is what the quickstart's training consumes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import ray

from jobs.command import connect, preset_config
from rayzero.studies.ingest import ingest
from rayzero.studies.loading import lake_source, stream
from tests.benchmarks.films import write_films, write_table
from tests.benchmarks.harness import Row, report

_CONSUMED = 26.0
"""Images per second that the quickstart trains on with two cores: ``python -m tests.benchmarks.training``."""

_BAR = 5.0
_BATCH = 32


def measure(folder: Path, studies: int, batches: int) -> Row:
    """Images per second over ``batches`` batches, after the first one has arrived."""
    write_table(folder, write_films(folder, count=60, side=512), studies=studies)
    lake = ingest("folder", str(folder), str(folder / "lake")).lake
    config = preset_config("quickstart", [])
    source = lake_source(lake, "train", config.data, config.vision.resolution)
    arriving = stream(source, rank=0, world_size=1, seed=0, skip=0, sizes=[_BATCH] * (batches + 1))
    next(arriving)
    start = time.monotonic()
    images = sum(batch.num_rows for batch in arriving)
    rate = images / (time.monotonic() - start)
    return Row(
        f"images/s at {config.vision.resolution} pixels, loader : quickstart's training",
        rate,
        _CONSUMED,
        _BAR,
        "higher",
    )


def main() -> None:
    """Print the row and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--studies", type=int, default=1200)
    parser.add_argument("--batches", type=int, default=80)
    options = parser.parse_args()
    connect()
    with tempfile.TemporaryDirectory() as name:
        row = measure(Path(name), options.studies, options.batches)
    ray.shutdown()
    if not report("loading", [row], options.out, note="films of 512 x 512 pixels"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
