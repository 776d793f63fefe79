"""A sweep with halving beside the full grid: RadZero on phantoms, loss form x temperature x resolution.

python -m tests.benchmarks.sweep --out sweep.json                      24 trials beside a grid of 24
python -m tests.benchmarks.sweep --trials 8 --temperatures 2 --steps 18 --patients 120     a smaller one

Both start from tune/spaces/laptop.yaml and train on the same studies; the best of each is then trained with seeds that
neither used. The grid has the temperatures at even distances of their logarithm.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from jobs.command import connect
from jobs.phantom import simulate
from rayzero.studies.ingest import ingest
from tests.benchmarks.harness import Row, report
from tune.answer import SweepResult
from tune.space import Choice, FloatRange, Repeats, Space, load_space
from tune.sweep import prepare, run_sweep

SPACE = Path(__file__).parents[2] / "tune" / "spaces" / "laptop.yaml"
# What halving may spend of the grid's images.
SHARE = 0.45


def grid_of(space: Space, temperatures: int) -> Space:
    """Every combination at full length, the range of the temperature cut into ``temperatures`` values."""
    span = space.parameters["model.temperature"]
    assert isinstance(span, FloatRange)
    values = np.geomspace(span.low, span.high, temperatures).round(4).tolist()
    parameters = {**space.parameters, "model.temperature": Choice(type="choice", values=tuple(values))}
    return space.model_copy(update={"parameters": parameters, "sampler": "grid", "halving": None, "start": ()})


def timed(space: Space, name: str, overrides: list[str]) -> tuple[SweepResult, float]:
    """A sweep and the seconds that it took."""
    start = time.monotonic()
    result = run_sweep(prepare(space, name, overrides))
    return result, time.monotonic() - start


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--temperatures", type=int, default=6, help="the grid has four times as many trials")
    parser.add_argument("--steps", type=int, default=27, help="steps of a whole trial at 32 images")
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each winner with new seeds")
    parser.add_argument("--folder", type=Path, help="keep the sweeps and their pages here")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="rayzero-sweep-"))
    lake = folder / "lake"
    connect()
    if not lake.exists():
        simulate(folder / "phantom", patients=options.patients, seed=7, fractions=(0.62, 0.38, 0.0))
        ingest("phantom", str(folder / "phantom"), str(lake))
    repeats = Repeats(top=1, seeds=options.seeds)
    space = load_space(SPACE).model_copy(update={"trials": options.trials, "repeats": repeats})
    overrides = [f"storage={folder}", f"data.lake={lake}", f"training.steps={options.steps}"]
    grid, grid_seconds = timed(grid_of(space, options.temperatures), "grid", overrides)
    sweep, sweep_seconds = timed(space, "halving", overrides)
    ours, best = sweep.repeated[0], grid.repeated[0]
    rows = [
        Row("trials", len(sweep.trials), len(grid.trials)),
        Row("images trained on", sweep.images, grid.images, bar=SHARE),
        # The low end of the interval of the grid's best, over the same number of seeds.
        Row("winner's AUROC, mean of new seeds", ours.mean, bar=best.low, better="higher"),
        Row("the same beside the grid's best", ours.mean, best.mean, better="higher"),
        Row("seconds, repeats included", sweep_seconds, grid_seconds),
    ]
    note = (
        f"{options.patients} phantom patients, {options.steps} steps; grid's best {best.parameters}: "
        f"[{best.low:.4f}, {best.high:.4f}]; winner {ours.parameters}: [{ours.low:.4f}, {ours.high:.4f}]"
    )
    print(note)
    raise SystemExit(0 if report("sweep", rows, options.out, note=note) else 1)


if __name__ == "__main__":
    main()
