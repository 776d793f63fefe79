"""What a dry run says of a run, against the run's own parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs import pretrain
from rayzero.alignment import registry
from rayzero.config import load_config
from rayzero.training.plan import count_parts, state_bytes
from rayzero.training.throughput import model_flops, peak_flops
from tests.alignment.test_many_processes import SAID, batch, model
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


def test_flops_of_a_step_are_forward_and_backward(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    network = model(tmp_path)
    before = {name: p.clone() for name, p in network.named_parameters()}
    data = batch(network.text, range(len(SAID)))
    counted = model_flops(network, data)
    # Twice the images: more than as much, for the texts and the comparisons come on top.
    half = model_flops(network, batch(network.text, range(len(SAID) // 2)))
    assert 1.5 * half < counted < 4 * half
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("a CPU") is None


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
