"""A sweep for real: Ray Tune, Optuna, and trials that are Ray Train runs."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from tests.toys import toy_lake
from tune.space import load_space
from tune.sweep import prepare, run_sweep

pytestmark = pytest.mark.cluster

SPACE = """
preset: quickstart
overrides:
  vision.resolution: 64
  text.trainable_layers: 0
  model.blocks: 0
  training.workers: 1
  training.cpus_per_worker: 0.25
  training.steps: 3
  training.batch_size: 16
  training.warmup_steps: 0
  training.checkpoint_every: 0
parameters:
  model.temperature: {type: float, low: 0.02, high: 0.5, log: true}
trials: 2
max_concurrent: 2
"""


def test_trials_finish_are_stored_and_are_ranked(cluster: None, tmp_path: Path) -> None:
    toy_lake(str(tmp_path / "lake"), train=32)
    (tmp_path / "space.yaml").write_text(SPACE)
    overrides = [f"storage={tmp_path}", f"data.lake={tmp_path}/lake"]
    sweep = prepare(load_space(tmp_path / "space.yaml"), "small", overrides)
    result = run_sweep(sweep)
    assert len(result.trials) == 2
    assert result.failed == 0
    assert result.trials[0].value >= result.trials[1].value
    assert {trial.steps for trial in result.trials} == {3}
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{sweep.folder / 'optuna.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert {t.params["model.temperature"] for t in study.trials} == {
        t.parameters["model.temperature"] for t in result.trials
    }
    assert (sweep.folder / "report.html").exists()
