"""Sweep settings of a run with Ray Tune and Optuna; each trial is a Ray Train run of its own.

python -m tune.sweep --space tune/spaces/radzero.yaml data.lake=s3://bucket/lake
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.optuna import OptunaSearch

from jobs.command import connect, main, preset_config
from rayzero.alignment import registry
from rayzero.config import Config, ConfigError, override
from rayzero.studies.lake import open_lake
from rayzero.training.features import cache_root, training_sources
from rayzero.training.run import pretrain
from tune.report import SweepResult, Trial, write_report
from tune.space import Space, load_space

# A trial's driver only waits for its Ray Train run.
_DRIVER_CPUS = 0.1


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: its name, its space, and the run that its trials vary."""

    name: str
    space: Space
    base: Config

    @property
    def folder(self) -> Path:
        """Where trials, the Optuna database and the report go."""
        return Path(self.base.storage).resolve() / "sweeps" / self.name


def prepare(space: Space, name: str, overrides: Sequence[str] = ()) -> Sweep:
    """Check every setting that the sweep touches before a trial starts.

    Raises ConfigError for an unknown key, or when a bound of the space is not a valid value.
    """
    base = override(preset_config(space.preset, overrides), {**space.overrides, "name": name})
    for key, parameter in space.parameters.items():
        ends = parameter.values if parameter.type == "choice" else (parameter.low, parameter.high)
        for value in ends:
            registry.resolve(override(base, {key: value}))
    if "://" in base.storage:
        raise ConfigError(f"storage={base.storage}: a sweep keeps its Optuna database on a local or shared disk")
    return Sweep(name, space, base)


def run_sweep(sweep: Sweep) -> SweepResult:
    """Run the trials and write the report. Needs a Ray cluster with its dashboard (Ray Train's cleaner asks it)."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    _warm_features(sweep.base)
    storage = optuna.storages.RDBStorage(f"sqlite:///{sweep.folder / 'optuna.db'}")
    space, objective = sweep.space, sweep.space.objective
    search = OptunaSearch(
        space={key: parameter.distribution() for key, parameter in space.parameters.items()},
        metric=objective.metric,
        mode=objective.mode,
        seed=sweep.base.seed,
        study_name=sweep.name,
        storage=storage,
    )
    trial = tune.with_parameters(run_trial, base=sweep.base, folder=str(sweep.folder))
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": _DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            metric=objective.metric,
            mode=objective.mode,
            search_alg=search,
            num_samples=space.trials,
            max_concurrent_trials=space.max_concurrent or concurrent_trials(sweep.base),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(sweep.folder), verbose=1),
    )
    result = collect(sweep, tuner.fit())
    write_report(sweep.folder, result)
    return result


def run_trial(parameters: dict[str, Any], *, base: Config, folder: str) -> None:
    """One trial: a Ray Train run whose reports reach Tune."""
    trial = tune.get_context().get_trial_id()
    # A trial's settings stand in its run folder's config.yaml; features are shared with the whole sweep.
    changes = {**parameters, "name": f"trial-{trial}", "storage": f"{folder}/trials", "data.cache": cache_root(base)}
    pretrain(override(base, changes), callbacks=[TuneReportCallback()])


def concurrent_trials(base: Config) -> int:
    """How many trials the cluster holds: Ray Train's workers are not in Tune's own accounting."""
    training, have = base.training, ray.cluster_resources()
    per_trial = {
        "CPU": _DRIVER_CPUS + training.workers * training.cpus_per_worker,
        "GPU": training.workers * training.gpus_per_worker,
    }
    return max(1, int(min(have.get(name, 0) / amount for name, amount in per_trial.items() if amount)))


def collect(sweep: Sweep, grid: tune.ResultGrid) -> SweepResult:
    """The finished trials, best first. Raises ConfigError with the first trial's error when none finished."""
    metric = sweep.space.objective.metric
    sign = -1 if sweep.space.objective.mode == "max" else 1
    results = [grid[index] for index in range(len(grid))]
    done = [result for result in results if result.error is None and metric in (result.metrics or {})]
    if not done:
        why = grid.errors[0] if grid.errors else f"none reported {metric}"
        raise ConfigError(f"no trial of sweep {sweep.name!r} finished: {why}")
    trials = [
        Trial(
            parameters=dict(result.config or {}),
            value=float(metrics[metric]),
            steps=int(metrics["step"]),
            seconds=float(metrics["time_total_s"]),
        )
        for result in done
        for metrics in [result.metrics or {}]
    ]
    return SweepResult(
        name=sweep.name,
        metric=metric,
        mode=sweep.space.objective.mode,
        trials=tuple(sorted(trials, key=lambda trial: sign * trial.value)),
        failed=len(grid) - len(done),
    )


def _warm_features(base: Config) -> None:
    """Fill the feature cache once, before trials would each fill it; trials that change its key make their own."""
    config = registry.resolve(base)
    if config.vision.cache_features:
        training_sources(config, open_lake(config.data.lake), ["train", "validation"])


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and sweep."""
    parser = argparse.ArgumentParser(prog="python -m tune.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--space", required=True, type=Path, help="YAML file, see tune/spaces")
    parser.add_argument("--name", help="name of the sweep; the file's name by default")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every trial")
    options = parser.parse_args(arguments)
    sweep = prepare(load_space(options.space), options.name or options.space.stem, options.overrides)
    connect()
    result = run_sweep(sweep)
    print(f"best {result.metric} {result.trials[0].value:.4f} with {result.trials[0].parameters}")
    print(f"report  {sweep.folder / 'report.html'}\ntrials  optuna-dashboard sqlite:///{sweep.folder / 'optuna.db'}")


if __name__ == "__main__":
    main(run)
