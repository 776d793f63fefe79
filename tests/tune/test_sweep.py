"""A sweep for real: Ray Tune, Optuna, trials that are Ray Train runs; its driver and a worker are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from optuna.trial import FrozenTrial, TrialState
from ray.util.state import list_actors
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from rayzero.config import load_config
from tests.toys import toy_lake
from tune.space import load_space
from tune.sweep import prepare, run_sweep

pytestmark = pytest.mark.cluster

SPACE = """
preset: quickstart
overrides:
  text.trainable_layers: 0
  vision.resolution: 64
  model.blocks: 0
  training.workers: 1
  training.cpus_per_worker: 0.25
  training.steps: 4
  training.batch_size: 16
  training.warmup_steps: 0
parameters:
  model.temperature: {type: float, low: 0.02, high: 0.5, log: true}
  training.batch_size: {type: choice, values: [16, 32]}
start:
  - {model.temperature: 0.07, training.batch_size: 16}
  - {model.temperature: 0.5, training.batch_size: 32}
halving: {reduction: 2, rungs: 1}
trials: 4
max_concurrent: 2
"""


def test_a_killed_driver_and_a_killed_worker_lose_no_trial(cluster: None, tmp_path: Path) -> None:
    toy_lake(str(tmp_path / "lake"), train=32)
    (tmp_path / "small.yaml").write_text(SPACE)
    overrides = [f"storage={tmp_path}", f"data.lake={tmp_path}/lake"]
    sweep = prepare(load_space(tmp_path / "small.yaml"), "small", overrides)
    command = [sys.executable, "-m", "tune.sweep", "--space", str(tmp_path / "small.yaml"), *overrides]
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen(command, env={**os.environ, **address}, start_new_session=True)
    try:
        worker = _wait(lambda: _worker_pids()[:1], driver)[0]
        os.kill(worker, signal.SIGKILL)
        before = _wait(lambda: _finished(sweep.database), driver)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()

    result = run_sweep(sweep, resume=True)
    trials = _trials(sweep.database)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    # What was finished is as it was, and has no second run.
    assert all(trials[trial.number] == trial for trial in before)
    assert sorted(path.name for path in Path(sweep.folder, "trials").glob("trial-*")) == [
        f"trial-{number:04d}" for number in range(4)
    ]
    for trial in trials:
        first, *_ = trial.intermediate_values
        assert first == 32  # both batch sizes are compared after as many images
        assert trial.user_attrs["images_seen"] == (64 if trial.state == TrialState.COMPLETE else 32)
    assert [one.state for one in result.trials] == sorted(one.state for one in result.trials)
    assert result.share == sum(trial.user_attrs["images_seen"] for trial in trials) / (4 * 64)

    report = json.loads(Path(sweep.folder, "report.json").read_text())
    assert report["best"] == result.best.number
    winner = load_config(Path(sweep.folder, "best.yaml"))
    assert winner.model["temperature"] == result.best.parameters["model.temperature"]
    assert winner.training.steps == 110  # the preset's own length
    assert any(_has_hparams(path) for path in Path(sweep.folder, "tune").rglob("events*"))


def _wait(found: Callable[[], list[Any]], driver: subprocess.Popen[bytes]) -> list[Any]:
    deadline = time.monotonic() + 300
    while not (things := found()):
        assert driver.poll() is None, "the driver ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return things


def _worker_pids() -> list[int]:
    alive = list_actors(filters=[("state", "=", "ALIVE")])
    return [actor.pid for actor in alive if actor.class_name == "RayTrainWorker" and actor.pid]


def _finished(database: str) -> list[FrozenTrial]:
    return [trial for trial in _trials(database) if trial.state.is_finished()]


def _trials(database: str) -> list[FrozenTrial]:
    try:
        return optuna.load_study(study_name="small", storage=database).trials
    except (KeyError, optuna.exceptions.OptunaError):
        return []


def _has_hparams(path: Path) -> bool:
    events = EventAccumulator(str(path))
    events.Reload()
    return "_hparams_/experiment" in events.summary_metadata
