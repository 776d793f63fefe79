"""BrgSA's loss and gradients over several processes equal those of one process that holds the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rayzero.alignment.base import Batch
from rayzero.alignment.brgsa import BrgSA, BrgSASettings
from rayzero.encoders.volume import ViT3D
from rayzero.training.batches import text_id
from tests.alignment.test_many_processes import gradients
from tests.encoders.test_volume import TINY
from tests.encoders.tiny import tiny_bert, tiny_text
from tests.processes import in_processes

# The caption of each study; two studies say the same, and of one more there are two volumes.
CAPTIONS = ("edema", "a nodule", "edema", "a fracture", "a mass", "no effusion")
STUDIES = (0, 1, 2, 3, 4, 4)


def model(folder: Path) -> BrgSA:
    torch.manual_seed(0)
    settings = BrgSASettings(width=12, bank_size=20, text_layers=2)
    return BrgSA(ViT3D(TINY, (4, 8, 8), normalised=True), tiny_text(folder), settings).double().eval()


def batch(network: BrgSA, images: range) -> Batch:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(len(CAPTIONS), 1, 4, 8, 8, dtype=torch.float64, generator=generator)
    said = [CAPTIONS[i] for i in images]
    return Batch(
        texts=network.text.tokenize(said),
        text_ids=torch.tensor([text_id(one) for one in said]),
        positives=torch.tensor(
            [[CAPTIONS[i] == CAPTIONS[j] or STUDIES[i] == STUDIES[j] for j in images] for i in images]
        ),
        pixels=pixels[images.start : images.stop],
    )


def process(rank: int, folder: str) -> None:
    world = dist.get_world_size()
    share = range(rank, rank + 1) if rank < world - 1 else range(world - 1, len(CAPTIONS))
    network = model(Path(folder))
    losses = network.loss(batch(network, share))
    losses["loss"].backward()
    grads = gradients(network)
    for grad in grads.values():
        dist.all_reduce(grad)
        grad /= world  # what a training engine does
    torch.save({"losses": {k: v.detach() for k, v in losses.items()}, "grads": grads}, f"{folder}/rank{rank}.pt")


@pytest.mark.parametrize("world", [2, 4])
def test_processes_equal_one(world: int, tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    network = model(tmp_path)
    losses = network.loss(batch(network, range(len(CAPTIONS))))
    losses["loss"].backward()
    expected = gradients(network)
    in_processes(world, process, str(tmp_path))
    for rank in range(world):
        got = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, value in losses.items():
            torch.testing.assert_close(got["losses"][name], value.detach(), rtol=0, atol=1e-12, msg=name)
        assert got["grads"].keys() == expected.keys()
        for name, grad in expected.items():
            torch.testing.assert_close(got["grads"][name], grad, rtol=1e-9, atol=1e-12, msg=name)
