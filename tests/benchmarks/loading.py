"""How fast images reach a training process: ``python -m tests.benchmarks.loading [--out FILE]``.

Films of 512 x 512 pixels go from a lake through Ray Data to batches at the quickstart's resolution. The other figure
is what the quickstart's training consumes.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import ray

from jobs.command import connect, preset_config
from rayzero.studies.ingest import ingest
from rayzero.studies.loading import lake_source, stream
from tests.benchmarks.films import write_films, write_table

_CONSUMED = 26.0
"""Images per second that the quickstart trains on with two cores."""

_BAR = 5.0
_BATCH = 32


def measure(folder: Path, studies: int, batches: int) -> dict[str, object]:
    """Images per second over ``batches`` batches, after the first one has arrived."""
    write_table(folder, write_films(folder, count=60, side=512), studies=studies)
    lake = ingest("folder", str(folder), str(folder / "lake")).lake
    config = preset_config("quickstart", [])
    source = lake_source(lake, "train", config.data, config.vision.resolution)
    arriving = stream(source, rank=0, world_size=1, seed=0, batch_size=_BATCH, first_batch=0, num_batches=batches + 1)
    next(arriving)
    start = time.monotonic()
    images = sum(batch.num_rows for batch in arriving)
    rate = images / (time.monotonic() - start)
    return {
        "figure": f"images/s at {config.vision.resolution} pixels, loader : quickstart's training",
        "ours": round(rate, 1),
        "other": _CONSUMED,
        "ratio": round(rate / _CONSUMED, 2),
        "bar": f">= {_BAR:g}",
        "ok": rate >= _BAR * _CONSUMED,
    }


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
    print("{figure}  {ours}  {other}  {ratio}  {bar}  ".format(**row) + ("yes" if row["ok"] else "NO"))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"benchmark": "loading", "cores": os.cpu_count(), "load": os.getloadavg()[0], "rows": [row]}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
