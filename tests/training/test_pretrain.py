"""Pretraining for real: Ray Train, two DeepSpeed workers over gloo, killed and resumed, exported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.command import connect
from rayzero.bundle import load_bundle
from rayzero.config import ConfigError, load_config
from rayzero.evaluation.protocols.registry import find_protocol
from rayzero.studies.errors import LakeError
from rayzero.studies.lake import open_lake
from rayzero.training.export import export_run
from rayzero.training.run import TrainingResult, pretrain
from tests.toys import toy_lake

pytestmark = pytest.mark.cluster


def settings(root: Path, name: str, *more: str) -> list[str]:
    return [
        f"name={name}",
        f"storage={root}",
        f"data.lake={root}/lake",
        "vision.resolution=64",
        "vision.cache_features=true",
        # No dropout: its draws depend on the worker, and the test wants equality to the digit.
        "text.trainable_layers=0",
        "model.heads=6",
        "model.blocks=1",
        "model.balanced=true",
        "training.workers=2",
        "training.cpus_per_worker=0.5",
        "training.steps=12",
        "training.batch_size=16",
        "training.lr=1e-3",
        "training.checkpoint_every=4",
        "training.log_every=4",
        *more,
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    toy_lake(str(folder / "lake"))
    return folder


@pytest.fixture(scope="module")
def finished(cluster: None, root: Path) -> TrainingResult:
    return pretrain(load_config(None, settings(root, "whole")))


def test_it_learns_and_leaves_a_run_folder(finished: TrainingResult, root: Path) -> None:
    assert finished.metrics["step"] == 12
    assert finished.metrics["validation/macro_auroc"] > 0.9
    folder = Path(finished.run_folder)
    assert json.loads((folder / "environment.json").read_text())["lake"]["fingerprint"]
    assert list((folder / "tensorboard").glob("events*"))
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-00000008", "checkpoint-00000012"]


def test_the_same_name_with_other_settings_is_refused(finished: TrainingResult, root: Path) -> None:
    with pytest.raises(ConfigError, match=r"began with other settings \(training.lr\)"):
        pretrain(load_config(None, settings(root, "whole", "training.lr=2e-3")))


def test_the_same_name_on_another_lake_is_refused(finished: TrainingResult, root: Path) -> None:
    environment = Path(finished.run_folder) / "environment.json"
    began = environment.read_text()
    try:
        environment.write_text(json.dumps({"lake": {"fingerprint": "another"}}))
        with pytest.raises(ConfigError, match="another version of the lake"):
            pretrain(load_config(None, settings(root, "whole")))
    finally:
        environment.write_text(began)


def test_what_cannot_run_is_said_before_it_starts(cluster: None, root: Path) -> None:
    with pytest.raises(LakeError, match="nowhere"):
        pretrain(load_config(None, [*settings(root, "no-lake"), f"data.lake={root}/nowhere"]))
    with pytest.raises(ConfigError, match=r"data\.lake is empty"):
        pretrain(load_config(None, [*settings(root, "no-lake"), "data.lake=''"]))
    with pytest.raises(ConfigError, match=r"need 16 CPU, the cluster has 2"):
        pretrain(load_config(None, [*settings(root, "big"), "training.cpus_per_worker=8"]))


def test_a_bundle_answers_zero_shot(finished: TrainingResult, root: Path) -> None:
    url = export_run(finished.run_folder, str(root / "bundle"))
    bundle = load_bundle(url)
    assert bundle.card["run"] == "whole"
    result = find_protocol("phantom").run(bundle, open_lake(str(root / "lake")))
    assert result.to_json()["classification"]["macro_auroc"]["value"] > 0.9


def test_a_driver_killed_midway_resumes_to_the_same_loss(finished: TrainingResult, root: Path) -> None:
    command = [sys.executable, "-m", "jobs.pretrain", *settings(root, "killed")]
    repository = Path(__file__).parents[2]
    address = connect()
    assert address
    environment = {**os.environ, "RAY_ADDRESS": ""}
    first = subprocess.Popen(command, cwd=repository, env=environment, start_new_session=True)
    deadline = time.monotonic() + 240
    # Ray Train lists a checkpoint here once it is whole: one that is still being written is no place to go on from.
    manifest = root / "killed" / "checkpoint_manager_snapshot.json"
    while not (manifest.exists() and "checkpoint-" in manifest.read_text()) and time.monotonic() < deadline:
        assert first.poll() is None, "the run ended before it could be killed"
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 1/12" not in done.stdout
    resumed = pretrain(load_config(None, settings(root, "killed")))
    assert resumed.metrics["loss"] == finished.metrics["loss"]
