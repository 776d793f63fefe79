"""A sweep with halving beside the full grid: RadZero on phantoms, loss form x temperature x resolution.

python -m tests.benchmarks.sweep --out sweep.json                      24 trials beside a grid of 24
python -m tests.benchmarks.sweep --trials 8 --temperatures 2 --steps 18 --patients 120     a smaller one
python -m tests.benchmarks.sweep --folder sweeps --out sweep.json      killed, the same command goes on where it stopped

Both start from tune/spaces/laptop.yaml and train on the same studies; the best of each is then trained with seeds that
neither used. The grid has the temperatures at even distances of their logarithm.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import optuna

from jobs.command import connect
from jobs.phantom import simulate
from rayzero.studies.ingest import ingest
from tests.benchmarks.harness import Row, report
from tune.answer import SweepResult
from tune.space import Choice, FloatRange, Repeats, Space, load_space
from tune.study import open_storage
from tune.sweep import describe, failures, prepare, run_sweep

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


def swept(space: Space, name: str, overrides: list[str]) -> SweepResult:
    """A sweep, or what is left of one that was killed; prints what it found, since the other one takes as long again.

    Exits when a run of the winner with another seed is lacking: there would be nothing to compare.
    """
    sweep = prepare(space, name, overrides)
    Path(sweep.folder).mkdir(parents=True, exist_ok=True)
    known = name in optuna.study.get_all_study_names(open_storage(sweep.database))
    wanted = len(space.grid()) if space.sampler == "grid" else space.trials
    print(f"{name}: {wanted} trials{', those that are left' * known}; {sweep.folder}", flush=True)
    result = run_sweep(sweep, resume=known)
    for line in [*failures(result.of("failed")), *result.repeats_failed]:
        print(line)
    if not result.repeated:
        raise SystemExit(f"{name}: its best trial lacks a run with another seed; {sweep.folder}/report.html")
    best = result.repeated[0]
    print(
        f"{name}: {len(result.trials)} trials, {result.images} images, best {describe(result.best, [result.metric])}, "
        f"with new seeds {best.mean:.4f} [{best.low:.4f}, {best.high:.4f}]",
        flush=True,
    )
    return result


def seconds(result: SweepResult) -> float:
    """Of all trials, added up: wall time would be that of the last start only."""
    return sum(trial.seconds for trial in result.trials)


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--temperatures", type=int, default=6, help="the grid has four times as many trials")
    parser.add_argument("--steps", type=int, default=27, help="steps of a whole trial at 32 images")
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each winner with new seeds")
    parser.add_argument("--folder", type=Path, help="keep the sweeps here, and take up what is left of them")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="rayzero-sweep-"))
    corpus, lake = (folder / f"{name}-{options.patients}" for name in ("phantom", "lake"))
    connect()
    if not (corpus / "studies.csv").exists():
        simulate(corpus, patients=options.patients, seed=7, fractions=(0.62, 0.38, 0.0))
    if not (lake / "lake.json").exists():
        ingest("phantom", str(corpus), str(lake))
    repeats = Repeats(top=1, seeds=options.seeds)
    space = load_space(SPACE).model_copy(update={"trials": options.trials, "repeats": repeats})
    overrides = [f"storage={folder}", f"data.lake={lake}", f"training.steps={options.steps}"]
    grid = swept(grid_of(space, options.temperatures), "grid", overrides)
    sweep = swept(space, "halving", overrides)
    ours, best = sweep.repeated[0], grid.repeated[0]
    rows = [
        Row("trials", len(sweep.trials), len(grid.trials)),
        Row("images trained on", sweep.images, grid.images, bar=SHARE),
        # The low end of the interval of the grid's best, over the same number of seeds.
        Row("winner's AUROC, mean of new seeds", ours.mean, bar=best.low, better="higher"),
        Row("the same beside the grid's best", ours.mean, best.mean, better="higher"),
        Row("seconds of all trials, added up", seconds(sweep), seconds(grid)),
    ]
    note = (
        f"{options.patients} phantom patients, {options.steps} steps; grid's best {best.parameters}: "
        f"[{best.low:.4f}, {best.high:.4f}]; winner {ours.parameters}: [{ours.low:.4f}, {ours.high:.4f}]"
    )
    print(note)
    raise SystemExit(0 if report("sweep", rows, options.out, note=note) else 1)


if __name__ == "__main__":
    main()
