"""Sweep settings of a run with Ray Tune and Optuna; each trial is a Ray Train run of its own.

python -m tune.sweep --space tune/spaces/radzero.yaml data.lake=s3://bucket/lake
python -m tune.sweep --space tune/spaces/radzero.yaml data.lake=s3://bucket/lake --resume
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import pyarrow.fs
import ray
from ray import tune

from jobs.command import connect, main, preset_config
from rayzero.alignment import registry
from rayzero.config import Config, ConfigError, nearest, override
from rayzero.evaluation.report import write_pages
from rayzero.storage import is_url, open_url
from rayzero.studies.lake import Lake
from rayzero.studies.loading import READER_CPUS, counted_by
from rayzero.studies.study import Split
from rayzero.training.errors import last_line
from rayzero.training.export import export_run
from rayzero.training.features import cache_key, training_sources
from rayzero.training.owner import owned
from rayzero.training.room import find_room, grows
from rayzero.training.run import absent_figure, absolute, check_monitor, count_examples, open_training_lake, pretrain
from rayzero.training.zero_shot import FIGURES
from tune.answer import NO_FIGURES, SweepResult, Trial, collect
from tune.budget import Budget, plan
from tune.report import preset_text, report_files
from tune.space import Choice, Parameters, Space, load_space
from tune.study import (
    IMAGES_PER_SECOND,
    NUMBER,
    StudyScheduler,
    StudySearch,
    begun,
    one_line,
    open_storage,
    open_study,
    shown,
    unfinished,
)
from tune.trial import run_trial

# A trial's driver only waits for its Ray Train run.
_DRIVER_CPUS = 0.1
_SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: its name, its space, the run that its trials vary, and what the winner's preset starts from.

    ``extremes`` are configs that show every end of every parameter once.
    """

    name: str
    space: Space
    base: Config
    preset: Config
    extremes: tuple[Config, ...]
    database: str

    @property
    def folder(self) -> str:
        """Folder or URL of trials, the default database and the report."""
        storage = self.base.storage
        root = storage.rstrip("/") if is_url(storage) else str(Path(storage).resolve())
        return f"{root}/sweeps/{self.name}"


def prepare(space: Space, name: str, overrides: Sequence[str] = (), *, database: str = "") -> Sweep:
    """Check every setting that the sweep touches before a trial starts.

    ``overrides`` go above those of the space. ``database`` is an SQLAlchemy URL; by default a file in the sweep's
    folder. Raises ConfigError for an unknown key, when an end of the space is not a valid value, for an objective that
    no run reports, or for a database that cannot be reached.
    """
    preset = registry.resolve(preset_config(space.preset, overrides))
    given = {text.split("=")[0] for text in overrides}
    kept = {key: value for key, value in space.overrides.items() if key not in given}
    # Tune runs each trial in a directory of its own.
    base = absolute(override(preset, {**kept, "name": name}))
    extremes = [override(base, space.settings(chosen)) for chosen in ({}, *space.corners())]
    for config in extremes:
        registry.resolve(config)
    _check_objectives(space, base)
    sweep = Sweep(name, space, base, preset, tuple(extremes), database)
    if database:
        open_storage(database)
    elif is_url(base.storage):
        raise ConfigError(
            f"storage={base.storage}: the sweep's database needs a local or shared disk, or a server: "
            "give --database, such as postgresql://user:password@host/optuna"
        )
    else:
        sweep = replace(sweep, database=f"sqlite:///{sweep.folder}/optuna.db")
    return sweep


def _check_objectives(space: Space, base: Config) -> None:
    """Refuse metrics that trials of ``base`` do not report."""
    known = ["loss", IMAGES_PER_SECOND, "time_total_s"]
    answers = registry.find_system(base).answers
    if answers:
        known += [f"validation/{name}" for name in FIGURES]
    if base.training.monitor == "loss" or not answers:
        known.append("validation/loss")
    for objective in space.objectives:
        if objective.metric == "validation/loss" not in known:
            raise ConfigError("objective 'validation/loss' is computed with training.monitor=loss: set it in overrides")
        if objective.metric not in known:
            raise ConfigError(
                f"objective {objective.metric!r} is reported by no run: {nearest(objective.metric, known)}"
            )
    if space.halving and space.objectives[0].metric in (IMAGES_PER_SECOND, "time_total_s"):
        raise ConfigError(f"halving cannot compare trials by {space.objectives[0].metric}, known at their end only")


def run_sweep(sweep: Sweep, *, resume: bool = False) -> SweepResult:
    """Run the trials, or with ``resume`` those that are left, and write the report.

    Needs a Ray cluster with its dashboard (Ray Train's cleaner asks it). Raises ConfigError or LakeError before any
    trial starts, TrainingError when another process runs the sweep or no nodes come for it, and ConfigError with the
    first trial's error when none finished.
    """
    # Two drivers would take up the same trials, and one would tell of the other's as failed.
    with owned(sweep.folder):
        return _run_sweep(sweep, _open_lake(sweep), resume=resume)


def _run_sweep(sweep: Sweep, lake: Lake, *, resume: bool) -> SweepResult:
    # Tune's table tells what Optuna would log.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for config in sweep.extremes:
        # The feature cache would wait for a GPU that nobody has.
        find_room(config, driver_cpus=_DRIVER_CPUS)
    budget = _budget(sweep, lake)
    storage = open_storage(sweep.database)
    study = open_study(storage, sweep.name, sweep.space, budget, sweep.base, lake.fingerprint, resume=resume)
    _warm_features(sweep, lake)
    deadline = None if sweep.space.hours is None else time.monotonic() + 3600 * sweep.space.hours
    _run_trials(sweep, study, budget, f"{sweep.folder}/trials", deadline)
    repeats = None
    result = collect(study, sweep.space.objectives, budget)
    if not result.of("complete"):
        why = next((trial.error for trial in result.trials if trial.error), "their time was up; --resume continues")
        raise ConfigError(f"no trial of sweep {sweep.name!r} finished: {why}")
    if sweep.space.repeats and not result.of("unfinished"):
        repeats = _repeat(sweep, lake, result, storage, budget, deadline)
        result = collect(study, sweep.space.objectives, budget, repeats)
    preset = override(sweep.preset, sweep.space.settings(result.best.parameters))
    files = report_files(result, command=f"optuna-dashboard {shown(sweep.database)}")
    write_pages(sweep.folder, {**files, "best.yaml": preset_text(result, preset)})
    return result


def train_winner(sweep: Sweep, result: SweepResult) -> str:
    """Train the winner at the preset's full length and export it; returns the bundle's folder or URL.

    Raises TrainingError when another process runs the sweep: its winner's bundle goes to the same place.
    """
    config = override(sweep.preset, sweep.space.settings(result.best.parameters))
    # Another trial may win when the sweep is resumed with more of them.
    name = f"winner-{result.best.number:04d}"
    config = override(config, {"name": name, "storage": sweep.folder, "data.cache": sweep.base.data.cache})
    with owned(sweep.folder):
        return export_run(pretrain(config).run_folder, f"{sweep.folder}/bundle")


def _run_trials(sweep: Sweep, study: optuna.Study, budget: Budget, folder: str, deadline: float | None) -> None:
    space, left = sweep.space, unfinished(study)
    wanted = len(space.grid()) if space.sampler == "grid" else space.trials
    count = max(0, wanted - begun(study)) + len(left)
    seconds = None if deadline is None else deadline - time.monotonic()
    if count == 0 or (seconds is not None and seconds <= 0):
        return
    # Not every report is a validation, and Tune would end the trial for it.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    together = concurrent_trials(sweep.extremes, space.max_concurrent)
    print(f"{study.study_name}: {count} trials to run, {together} at once", flush=True)
    search = StudySearch(study, space, budget, left)
    trainable = tune.with_parameters(run_trial, space=space, base=sweep.base, budget=budget, folder=folder)
    remote = is_url(sweep.folder)
    fs, path = open_url(f"{sweep.folder}/tune")
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": _DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            metric=space.objectives[0].metric,
            mode=space.objectives[0].mode,
            search_alg=search,
            scheduler=StudyScheduler(search),
            num_samples=count,
            max_concurrent_trials=together,
            time_budget_s=seconds,
        ),
        run_config=tune.RunConfig(
            name=f"{study.study_name}-{begun(study):04d}",
            storage_path=path,
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)) if remote else None,
            failure_config=tune.FailureConfig(max_failures=space.retries),
            verbose=1,
        ),
    )
    grid = tuner.fit()
    results = [grid[index] for index in range(len(grid))]
    errors = {
        str((one.config or {})[NUMBER]): one_line(last_line(one.error)) for one in results if one.error is not None
    }
    study.set_user_attr("errors", {**study.user_attrs.get("errors", {}), **errors})


def _repeat(
    sweep: Sweep,
    lake: Lake,
    result: SweepResult,
    storage: optuna.storages.RDBStorage,
    budget: Budget,
    deadline: float | None,
) -> optuna.Study:
    """Run the best trials with seeds that the sweep did not use, as a study of its own."""
    assert sweep.space.repeats is not None
    best = [str(trial.number) for trial in result.of("complete")[: sweep.space.repeats.top]]
    space = repeats_space(sweep.space, result, best, sweep.base.seed)
    # Trials that a resumed sweep adds may change which are the best: those are other repeats.
    label = "repeats-" + "-".join(best)
    name = f"{sweep.name}.{label}"
    known = name in optuna.study.get_all_study_names(storage)
    study = open_study(storage, name, space, budget, sweep.base, lake.fingerprint, resume=known)
    print(f"repeating trials {', '.join(best)} with {sweep.space.repeats.seeds} seeds each", flush=True)
    _run_trials(replace(sweep, space=space), study, Budget(budget.images, None), f"{sweep.folder}/{label}", deadline)
    return study


def repeats_space(space: Space, result: SweepResult, best: Sequence[str], seed: int) -> Space:
    """The trials numbered ``best`` times seeds after the sweep's own ``seed``, as a grid."""
    assert space.repeats is not None
    seeds = range(seed + 1, seed + 1 + space.repeats.seeds)
    parameters = {str(trial.number): trial.parameters for trial in result.trials}
    return Space(
        preset=space.preset,
        parameters={"of": Choice(type="choice", values=(*best,)), "repeat": Choice(type="choice", values=(*seeds,))},
        follows={
            "of": {number: space.settings(parameters[number]) for number in best},
            "repeat": {one: {"seed": one} for one in seeds},
        },
        objectives=space.objectives,
        sampler="grid",
        retries=space.retries,
        max_concurrent=space.max_concurrent,
    )


def concurrent_trials(configs: Sequence[Config], most: int = 0) -> int:
    """How many trials the cluster holds as it is beside what reads for them: Tune does not count Ray Train's workers.

    ``most`` is a space's ``max_concurrent``, for which a cluster that grows has nodes come.
    """
    if most and grows():
        return most
    have = ray.cluster_resources()
    have["CPU"] = have.get("CPU", 0.0) - READER_CPUS
    per_trial = {
        "CPU": _DRIVER_CPUS + max(one.training.workers * one.training.cpus_per_worker for one in configs),
        "GPU": max(one.training.workers * one.training.gpus_per_worker for one in configs),
    }
    held = max(1, int(min(have.get(name, 0) / amount for name, amount in per_trial.items() if amount)))
    # Trials beyond that would hold the CPUs that the others read with.
    return min(held, most) if most else held


def _open_lake(sweep: Sweep) -> Lake:
    lake = open_training_lake(sweep.base)
    metrics = [objective.metric for objective in sweep.space.objectives if objective.metric.startswith("validation/")]
    if metrics and "validation" not in lake.splits:
        raise ConfigError(
            f"objective {metrics[0]!r}: the lake {lake.url} has no validation split, so no run reports it"
        )
    for config in sweep.extremes:
        for metric in metrics:
            figure = metric.removeprefix("validation/")
            problem = absent_figure(figure, config, lake) if figure in FIGURES else None
            if problem:
                raise ConfigError(f"objective {metric!r} is reported by no run on the lake {lake.url}: {problem}")
        # What would be refused trial by trial.
        check_monitor(config, lake)
    return lake


def _budget(sweep: Sweep, lake: Lake) -> Budget:
    # What is trained on may follow from a choice, such as the kind of texts: trials are compared where the smallest
    # epoch ends, or the others would be a comparison ahead of it.
    data = {counted_by(config.data): config for config in sweep.extremes}
    examples = min(count_examples(config, lake) for config in data.values()) if sweep.base.training.epochs else 0
    largest = max(config.training.largest_batch for config in sweep.extremes)
    return plan(sweep.base, sweep.space.halving, examples=examples, largest_batch=largest)


def _warm_features(sweep: Sweep, lake: Lake) -> None:
    """Fill the feature caches before trials start: two would fill the same, and wait for CPUs that all of them hold."""
    caches: dict[str, Config] = {}
    points: list[Parameters] = [{}]

    def key(point: Parameters) -> str:
        config = registry.resolve(override(sweep.base, sweep.space.settings(point)))
        name = cache_key(config, lake, "train") if config.vision.cache_features else ""
        if name:
            caches.setdefault(name, config)
        return name

    plain = key({})
    for name in sweep.space.parameters:
        values = [corner for corner in sweep.space.corners() if name in corner]
        if any(key(corner) != plain for corner in values):
            points = [{**point, **corner} for point in points for corner in values]
    for point in points:
        key(point)
    for config in caches.values():
        training_sources(config, lake, [split for split in _SPLITS if split in lake.splits])


def describe(trial: Trial, metrics: Sequence[str]) -> str:
    """A trial's figures and settings in one line."""
    figures = "  ".join(f"{metric} {value:.4f}" for metric, value in zip(metrics, trial.values, strict=False))
    return f"trial {trial.number}  {figures}  {trial.parameters}"


def failures(trials: Iterable[Trial]) -> list[str]:
    """A line for each of the failed ``trials``: why."""
    return [f"failed  trial {trial.number}: {trial.error or NO_FIGURES}" for trial in trials]


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and sweep."""
    parser = argparse.ArgumentParser(prog="python -m tune.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--space", required=True, type=Path, help="YAML file, see tune/spaces")
    parser.add_argument("--name", help="name of the sweep; the file's name by default")
    parser.add_argument("--database", default="", help="SQLAlchemy URL; by default a file in the sweep's folder")
    parser.add_argument("--resume", action="store_true", help="continue a sweep that was interrupted, or add trials")
    parser.add_argument("--train-winner", action="store_true", help="then train the winner in full and export it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every trial and of the winner")
    options = parser.parse_args(arguments)
    name = options.name or options.space.stem
    sweep = prepare(load_space(options.space), name, options.overrides, database=options.database)
    connect()
    result = run_sweep(sweep, resume=options.resume)
    print(f"best    {describe(result.best, [objective.metric for objective in result.objectives])}")
    if left := len(result.of("unfinished")) + result.repeats_left:
        print(f"left    {left} trials were put off; --resume continues them")
    for line in [*failures(result.of("failed")), *(f"failed  repeat of {why}" for why in result.repeats_failed)]:
        print(line)
    print(f"report  {sweep.folder}/report.html\npreset  {sweep.folder}/best.yaml")
    print(f"trials  optuna-dashboard {shown(sweep.database)}\n        tensorboard --logdir {sweep.folder}/tune")
    if options.train_winner:
        print(f"bundle  {train_winner(sweep, result)}")


if __name__ == "__main__":
    main(run)
