"""Pretraining for real: Ray Train, two DeepSpeed workers over gloo, killed and resumed, exported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.command import connect
from rayzero.alignment import registry
from rayzero.bundle import load_bundle
from rayzero.config import ConfigError, load_config, parse_config
from rayzero.evaluation.protocols.registry import find_protocol
from rayzero.storage import open_url
from rayzero.studies.errors import LakeError
from rayzero.studies.lake import open_lake
from rayzero.studies.loading import lake_source
from rayzero.training import features
from rayzero.training.checkpoint import load_weights
from rayzero.training.export import export_run
from rayzero.training.manifest import list_stored
from rayzero.training.nonfinite import NonFiniteError
from rayzero.training.run import TrainingResult, pretrain
from rayzero.training.zero_shot import FIGURES
from tests.studies.faulty_store import faulty_store
from tests.toys import toy_lake

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]


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


@pytest.mark.usefixtures("cluster")
def test_an_encoder_that_no_actor_can_load_is_one_line(root: Path) -> None:
    config = load_config(None, settings(root, "unknown", f"vision.encoder={root}/nowhere"))
    with pytest.raises(ConfigError) as raised:
        features._encode(
            config, {f"{root}/cache/none": lake_source(open_lake(f"{root}/lake"), "train", config.data, 64)}
        )
    assert type(raised.value) is ConfigError
    assert str(raised.value).startswith(f"vision.encoder='{root}/nowhere' cannot be loaded")
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def finished(cluster: None, root: Path) -> TrainingResult:
    return pretrain(load_config(None, settings(root, "whole")))


def test_it_learns_and_leaves_a_run_folder(finished: TrainingResult, root: Path) -> None:
    assert finished.metrics["step"] == 12
    assert finished.metrics["validation/macro_auroc"] > 0.9
    folder = Path(finished.run_folder)
    assert json.loads((folder / "environment.json").read_text())["lake"]["fingerprint"]
    tags = EventAccumulator(str(folder / "tensorboard")).Reload().Tags()
    logged = {f"train/{name}" for name in ("loss", "temperature", "data_wait", "checkpoint_wait", "memory_gib")}
    logged |= {f"validation/{name}" for name in FIGURES}
    assert logged <= set(tags["scalars"])
    # From cached features, whose regions and reports are read in the lake.
    assert all(0 <= finished.metrics[f"validation/{name}"] <= 1 for name in FIGURES)
    assert tags["images"] == ["maps/lung nodule", "maps/pleural effusion"]
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


def test_a_run_whose_loss_is_no_number_stops_once(cluster: None, root: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"run 'wild' stopped: .*step 2.* names the studies"):
        pretrain(load_config(None, settings(root, "wild", "training.lr=1e30", "training.zero_stage=0")))
    folder = root / "wild"
    # One record per worker, and one file of events per start of the workers.
    assert sorted(path.name for path in folder.glob("nonfinite-*")) == [
        f"nonfinite-00000002-worker-{rank}.json" for rank in range(2)
    ]
    assert len(list((folder / "tensorboard").glob("events*"))) == 1
    assert not list(folder.glob("checkpoint-*"))
    assert not (folder / "owner.json").exists()


def test_a_bundle_answers_zero_shot(finished: TrainingResult, root: Path) -> None:
    url = export_run(finished.run_folder, str(root / "bundle"))
    bundle = load_bundle(url)
    assert bundle.card["run"] == "whole"
    result = find_protocol("phantom").run(bundle, open_lake(str(root / "lake")))
    assert result.to_json()["classification"]["macro_auroc"]["value"] > 0.9


def test_a_driver_killed_midway_resumes_to_the_same_weights(cluster: None, root: Path) -> None:
    """With images that change from epoch to epoch, on two workers: a resumed run draws what the other one drew."""
    augmented = ["vision.cache_features=false", "data.augmentation.crop=0.875", "data.augmentation.flip=0.5"]
    augmented += ["data.augmentation.rotation=10", "data.augmentation.brightness=[0.8,1.2]"]
    whole = pretrain(load_config(None, settings(root, "augmented", *augmented)))
    command = [sys.executable, "-m", "jobs.pretrain", *settings(root, "killed", *augmented)]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    log = root / "killed.log"
    with log.open("wb") as out:
        first = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, start_new_session=True, stdout=out, stderr=out
        )
    # Ray Train lists a checkpoint here once it is whole: one that is still being written is no place to go on from.
    listed = root / "killed" / "checkpoint_manager_snapshot.json"
    await_text(listed, "checkpoint-", while_alive=first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    # What a kill in the middle of an upload leaves.
    orphan = root / "killed" / "checkpoint-00000099"
    orphan.mkdir()
    (orphan / "half.pt").write_bytes(b"half")
    resumed = pretrain(load_config(None, settings(root, "killed", *augmented)))
    assert resumed.metrics["loss"] == whole.metrics["loss"]
    assert first_step_of(resumed.run_folder) >= 4
    assert not orphan.exists()
    assert same_weights(whole.run_folder, resumed.run_folder)


def test_a_damaged_checkpoint_is_passed_over_and_another_stage_goes_on(finished: TrainingResult, root: Path) -> None:
    # The same run in another place, its newest checkpoint damaged by one bit.
    shutil.copytree(finished.run_folder, root / "moved" / "whole")
    shard = next((root / "moved" / "whole" / "checkpoint-00000012" / "deepspeed").glob("zero_pp_rank_1*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    changes = [f"storage={root}/moved", f"data.cache={root}/cache", "training.zero_stage=3"]
    again = pretrain(load_config(None, [*settings(root, "whole"), *changes]))
    assert first_step_of(again.run_folder) == 8
    assert again.metrics["loss"] == pytest.approx(finished.metrics["loss"], rel=1e-5)
    stored = list_stored(*open_url(again.run_folder))
    # The damaged one counts no more, and its name is not used for another while Ray Train has it on its list.
    assert [one.step for one in stored].count(12) == 1
    assert stored[-1].name == "checkpoint-00000012-again"
    assert {one.zero_stage for one in stored[-1].manifests} == {3}


def test_an_outage_of_the_store_and_a_killed_worker_cost_no_step(finished: TrainingResult, root: Path) -> None:
    with faulty_store(seed=3) as store:
        # Workers get the address of the store as the user of a cluster gives it: from the environment.
        ray.shutdown()
        connect()
        config = load_config(None, [*settings(root, "away"), "storage=s3://bucket/runs", f"data.cache={root}/cache"])
        store.hold("checkpoint-00000012")  # the run cannot end before a worker is killed
        with ThreadPoolExecutor(1) as driver:
            running = driver.submit(pretrain, config)
            fs, _ = open_url("s3://bucket")

            def listed() -> str:
                fs.invalidate_cache()
                path = "bucket/runs/away/checkpoint_manager_snapshot.json"
                return fs.cat_file(path).decode() if fs.exists(path) else ""

            await_true(lambda: "checkpoint-00000004" in listed() or running.done())
            store.away(seconds=6)
            await_true(lambda: "checkpoint-00000008" in listed() or running.done())
            assert not running.done(), running.result()
            os.kill(training_workers()[0], signal.SIGKILL)
            store.release()
            result = running.result(timeout=400)
        assert store.faults["away"] > 0
        assert result.metrics["loss"] == finished.metrics["loss"]
        stored = list_stored(fs, "bucket/runs/away")
        assert [one.step for one in stored][-1] == 12
        assert same_weights(finished.run_folder, result.run_folder)
    ray.shutdown()


def await_true(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def await_text(path: Path, text: str, *, while_alive: subprocess.Popen[bytes]) -> None:
    def there() -> bool:
        assert while_alive.poll() is None, "the run ended before it could be killed"
        return path.exists() and text in path.read_text()

    await_true(there)


def training_workers() -> list[int]:
    """Process ids of the workers of this test's own cluster."""
    return [p.pid for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]


def first_step_of(run: str) -> int:
    """The step before the first that the newest event file of a run tells of."""
    newest = max(Path(run, "tensorboard").glob("events*"), key=lambda path: path.stat().st_mtime)
    events = EventAccumulator(str(newest)).Reload()
    return int(events.Scalars("train/loss")[0].step) - 1


def same_weights(run: str, other: str) -> bool:
    """Whether the newest checkpoints of two runs hold the same weights, bit for bit."""
    models = []
    for folder in (run, other):
        fs, path = open_url(folder)
        model = registry.build(parse_config(fs.cat_file(f"{path}/config.yaml").decode()))
        load_weights(model, fs, list_stored(fs, path)[-1])
        models.append(dict(model.named_parameters()))
    return all(torch.equal(value, models[1][name]) for name, value in models[0].items())
