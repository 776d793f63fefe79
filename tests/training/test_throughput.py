"""What a run says of its use of the hardware."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from rayzero.alignment import registry
from rayzero.config import load_config
from rayzero.ops import similarity_attention, vl_cabs
from rayzero.ops.similarity_attention import vl_cabs_reference
from rayzero.training.throughput import _FORMULAS, model_flops, peak_flops
from tests.alignment import test_brgsa
from tests.alignment.test_many_processes import SAID, batch, model
from tests.encoders.tiny import tiny_bert


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181.05e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA RTX 6000 Ada Generation", 364.25e12),
    ],
)
def test_the_peak_is_of_that_very_device(device: str, peak: float) -> None:
    assert peak_flops(device) == peak


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA A10G",
        "NVIDIA RTX 6000",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "GRID A100-40C",
        "NVIDIA B2000",
        "a CPU",
        "",
    ],
)
def test_an_unlisted_device_has_no_peak(device: str) -> None:
    assert peak_flops(device) is None


@pytest.mark.parametrize("path", ["similarity_tiles", "similarity_cuda"])
@pytest.mark.parametrize("tokens", [4, 37], ids=["few tokens", "many tokens"])
def test_an_operation_counts_as_its_plain_formula(path: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a CPU computes it, with the Gram form or without, or Triton, whose GEMMs no counter sees."""
    if path == "similarity_cuda":
        pytest.importorskip("triton")
    engine = importlib.import_module(f"rayzero.ops.{path}")
    monkeypatch.setattr(similarity_attention, "_engine", lambda problem: engine)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    text, image = (
        F.normalize(torch.randn(*shape, device=device), dim=-1).to(torch.bfloat16).requires_grad_()
        for shape in ((9, 32), (3, tokens, 32))
    )

    def counted(compute: Callable[..., torch.Tensor]) -> int:
        with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
            compute(text, image, 0.07).sum().backward()
        return counter.get_total_flops()

    assert counted(vl_cabs) == counted(vl_cabs_reference) > 12 * 9 * 3 * tokens * 32


def test_flops_of_a_step_are_forward_and_backward(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    network = model(tmp_path)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    drawn = torch.get_rng_state()
    data = batch(network.text, range(len(SAID)))
    counted = model_flops(network, data)
    # Twice the images: more than as much, for the texts and the comparisons come on top.
    half = model_flops(network, batch(network.text, range(len(SAID) // 2)))
    assert 1.5 * half < counted < 4 * half
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_dropout_and_batch_statistics_leave_no_trace(tmp_path: Path) -> None:
    """The count is of training itself; the run must start as if it had not been taken."""
    settings = [f"text.encoder={tiny_bert(tmp_path)}", "model.heads=2", "vision.resolution=64", "vision.frozen=false"]
    network = registry.build(load_config(None, settings))
    data = replace(batch(network.text, range(len(SAID))), pixels=torch.rand(len(SAID), 1, 64, 64))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    drawn = torch.get_rng_state()
    assert model_flops(network, data) > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_count_that_does_not_fit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """The first step would start from the gradients of half a backward pass, in inference mode."""
    tiny_bert(tmp_path)
    network = model(tmp_path).train()
    data = batch(network.text, range(len(SAID)))

    def full(grad: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    # The first parameter that the forward pass uses is among the last that the backward pass reaches.
    next(p for p in network.text.parameters() if p.requires_grad).register_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        model_flops(network, data)
    assert network.training
    assert all(p.grad is None for p in network.parameters())


def test_operations_are_those_of_the_crop_that_training_sees(tmp_path: Path) -> None:
    whole, cropped = test_brgsa.build(tmp_path), test_brgsa.build(tmp_path, crop=(4, 8, 8))
    assert model_flops(cropped, test_brgsa.batch(cropped)) < model_flops(whole, test_brgsa.batch(whole))
    assert not cropped.training
