"""What a dry run says of a run, against the run's own parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs import pretrain
from rayzero.alignment import registry
from rayzero.alignment.base import Batch
from rayzero.config import load_config
from rayzero.studies.loading import lake_source
from rayzero.training import loop
from rayzero.training.plan import Plan, count_parts, describe, state_bytes
from tests.encoders.tiny import tiny_bert
from tests.toys import toy_lake


def test_parts_are_all_parameters_once(tmp_path: Path) -> None:
    config = load_config(None, [f"text.encoder={tiny_bert(tmp_path)}", "text.trainable_layers=1", "model.heads=2"])
    network = registry.build(config)
    parts = {part.name: part for part in count_parts(network)}
    assert sum(part.trained + part.frozen for part in parts.values()) == sum(p.numel() for p in network.parameters())
    assert parts["vision"].trained == 0
    assert parts["vision"].frozen > 1e6
    assert 0 < parts["text"].trained < parts["text"].trained + parts["text"].frozen


def test_memory_by_stage() -> None:
    given = {"trained": 1000, "frozen": 500, "workers": 4, "bf16": False, "offload": False}
    # Rajbhandari et al. (arXiv 1910.02054), with fp32 weights and gradients.
    assert sum(state_bytes(**given, stage=0).values()) == 4 * 1500 + 4 * 1000 + 8 * 1000
    assert sum(state_bytes(**given, stage=1).values()) == 4 * 1500 + 4 * 1000 + 12 * 250
    assert sum(state_bytes(**given, stage=2).values()) == 4 * 1500 + 4 * 250 + 12 * 250
    assert sum(state_bytes(**given, stage=3).values()) == 4 * 375 + 4 * 250 + 12 * 250
    assert state_bytes(**{**given, "offload": True}, stage=1)["optimizer"] == 0
    # The moving average is no part of what ZeRO shards.
    assert state_bytes(**given, stage=2, ema=True)["average"] == 4 * 1000


@pytest.mark.parametrize(
    ("settings", "stage", "why"),
    [
        (["workers=2", "zero_stage=2"], 2, "training.zero_stage"),
        (["zero_stage=2"], 0, "one worker has nobody to share with"),
        (["zero_stage=0"], 0, "training.zero_stage"),
        (["zero_stage=2", "offload=optimizer"], 2, "training.zero_stage"),
    ],
)
def test_the_stage_that_a_run_takes_is_marked(settings: list[str], stage: int, why: str) -> None:
    config = load_config(None, [f"training.{one}" for one in settings])
    printed = describe(Plan((), 32, 1, 1, {stage: {"weights": 0} for stage in range(4)}), config)
    (marked,) = [line for line in printed.splitlines() if "<-" in line]
    assert marked.split()[0] == str(stage)
    assert marked.endswith(f"<- {why}")
    assert config.training.stage_of(config.training.workers) == stage


@pytest.mark.parametrize("fits", [True, False])
def test_operations_are_counted_on_what_a_worker_holds_at_a_time(
    fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on its whole share, which training.chunks is there to avoid; and a count that does not fit ends no run."""
    lake = toy_lake(str(tmp_path / "lake"), train=16)
    settings = [f"text.encoder={tiny_bert(tmp_path)}", "model.heads=2", "vision.resolution=64"]
    config = load_config(
        None, [*settings, "training.batch_size=16", "training.chunks=2", "training.activation_checkpointing=true"]
    )
    seen: list[int] = []

    def count(network: object, data: Batch, group: object, *, bf16: bool) -> int:
        seen.append(len(data))
        if not fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 100 * len(data)

    monkeypatch.setattr(loop, "model_flops", count)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    worker = object.__new__(loop._Worker)
    worker.config, worker.training, worker.rank, worker.world_size = config, config.training, 0, 2
    source = lake_source(lake, "train", config.data, 64, with_text=True)
    worker.job = loop.Job(config, source, None, "")
    assert worker._flops_per_image(registry.build(config)) == (100 if fits else None)
    assert seen == [4]


def test_a_dry_run_prints_the_plan_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_lake(str(tmp_path / "lake"), train=40)
    settings = [f"data.lake={tmp_path}/lake", f"storage={tmp_path}/runs", f"text.encoder={tiny_bert(tmp_path)}"]
    settings += ["data.augmentation.flip=0.5", "data.augmentation.scale=[0.9,1.1]"]
    pretrain.run(
        ["--dry-run", *settings, "model.heads=2", "training.epochs=3", "training.batch_size=16", "training.workers=2"]
    )
    printed = capsys.readouterr().out
    assert "batch_size: 16" in printed
    assert "augmentation     flip 0.5, scale [0.9, 1.1]" in printed
    assert "steps per epoch  2 of 16 images over 2 workers" in printed
    assert "steps            6" in printed
    assert "<- training.zero_stage" in printed
    assert not (tmp_path / "runs").exists()
