"""MRM and ALTA: loss and gradients of several processes equal those of one that holds the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rayzero.alignment import alta
from rayzero.alignment.base import PretrainingModel
from tests.alignment import records
from tests.encoders.tiny import tiny_bert
from tests.processes import in_processes


def loss_of(network: PretrainingModel, share: range) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)  # what is hidden
    parts = network.loss(records.batch(network.text, share))
    parts["loss"].backward()
    return {name: value.detach() for name, value in parts.items()}


def gradients(network: PretrainingModel) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in network.named_parameters()
        if p.requires_grad
    }


def process(rank: int, system: str, folder: str) -> None:
    world = dist.get_world_size()
    # Unequal shares: the last process takes the rest.
    total = len(records.SAID)
    share = range(rank, rank + 1) if rank < world - 1 else range(world - 1, total)
    network = getattr(records, system)(Path(folder))
    shapes: list[tuple[int, ...]] = []
    plain = alta.local_alignment
    alta.local_alignment = lambda *a, **k: shapes.append((len(a[0]), len(a[1]))) or plain(*a, **k)  # type: ignore[func-returns-value]
    parts = loss_of(network, share)
    grads = gradients(network)
    for grad in grads.values():
        dist.all_reduce(grad)
        grad /= world  # what a training engine does
    torch.save({"parts": parts, "grads": grads, "shapes": shapes, "share": len(share)}, f"{folder}/rank{rank}.pt")


@pytest.mark.parametrize("system", ["alta", "mrm"])
@pytest.mark.parametrize("world", [2, 4])
def test_processes_equal_one(world: int, system: str, tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    network = getattr(records, system)(tmp_path)
    expected = loss_of(network, range(len(records.SAID)))
    grads = gradients(network)
    assert all(bool(grad.any()) for grad in grads.values()), "a parameter that nothing trains"
    in_processes(world, process, system, str(tmp_path))
    for rank in range(world):
        got = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(got["parts"][name], value, rtol=0, atol=1e-9, msg=name)
        assert got["grads"].keys() == grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(got["grads"][name], grad, rtol=1e-9, atol=1e-9, msg=name)
        if system == "alta":
            # Its own images against the distinct texts of all: no process does another's work.
            assert got["shapes"] == [(got["share"], len(set(records.SAID)))]
