"""What a run says of its use of the hardware."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from rayzero.alignment import registry
from rayzero.config import load_config
from rayzero.ops import knowledge_bank, local_alignment, similarity_attention, vl_cabs
from rayzero.ops.bank_attention import knowledge_bank_reference
from rayzero.ops.local_alignment import local_alignment_reference
from rayzero.ops.pairwise_attention import pairwise_attention
from rayzero.ops.pairwise_decoder import Fold, Form, hoist, score_tile
from rayzero.ops.similarity_attention import vl_cabs_reference
from rayzero.training.throughput import FlopCounter, model_flops, peak_flops
from tests.alignment import test_brgsa
from tests.alignment.test_many_processes import SAID, batch, model
from tests.encoders.tiny import tiny_bert
from tests.ops.test_pairwise_attention import decoder, rows


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


def counted(compute: Callable[..., torch.Tensor], *given: object, **options: object) -> int:
    with FlopCounter() as counter:
        compute(*given, **options).sum().backward()
    return counter.get_total_flops()


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

    plain = counted(vl_cabs_reference, text, image, 0.07)
    assert counted(vl_cabs, text, image, 0.07) == plain > 12 * 9 * 3 * tokens * 32


def test_a_bank_counts_as_its_plain_formula() -> None:
    query, bank = rows(7, 16, seed=0), rows(11, 16, seed=1)
    plain = counted(knowledge_bank_reference, query, bank)
    assert counted(knowledge_bank, query, bank) == plain == 12 * 7 * 11 * 16


@pytest.mark.parametrize("tile", [1, 1 << 17])
def test_local_alignment_counts_as_its_plain_formula(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # By the module itself: the package gives the function under the same name.
    monkeypatch.setattr(sys.modules["rayzero.ops.local_alignment"], "_TILE_ELEMENTS", tile)
    given = rows(3, 14, 8, seed=0), rows(4, 5, 8, seed=1), torch.ones(4, 5, dtype=torch.bool), 4.0, 5.0, 10.0
    pairs = 3 * 14 * 4 * 5
    plain = counted(local_alignment_reference, *given)
    # The column of a product that masks.
    assert counted(local_alignment, *given) - 2 * pairs == plain == 12 * pairs * 8


@pytest.mark.parametrize("fold", get_args(Fold))
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_pairs_count_as_if_a_tile_were_kept(fold: Fold, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayzero.ops.pairwise_attention.cheapest_fold", lambda *_: fold)
    memory, queries, weights = rows(3, 5, 8, seed=0), rows(4, 8, seed=1), decoder(8, 6, 2, (5,), 2)
    form = Form(2, dropout, fold, zeros=False)

    def kept() -> torch.Tensor:
        return score_tile(memory, *hoist(queries, weights, form), None, weights, form)

    once = counted(kept)
    assert counted(pairwise_attention, memory, queries, weights, 2, dropout=dropout) == once > 0


def test_fused_attention_counts_as_its_plain_formula() -> None:
    query, key, value = (rows(2, 4, length, 8, seed=length) for length in (5, 7, 7))

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return (query @ key.transpose(-1, -2)).softmax(dim=-1) @ value

    fused = counted(F.scaled_dot_product_attention, query, key, value)
    assert fused == counted(plain, query, key, value) == 12 * 2 * 4 * 5 * 7 * 8


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
