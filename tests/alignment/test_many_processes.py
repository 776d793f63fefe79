"""Loss and gradients of several processes equal those of one process that holds the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rayzero.alignment.base import AlignmentModel, Batch
from rayzero.alignment.radzero import RadZero, RadZeroSettings
from rayzero.encoders.text import TextEncoder, TokenBatch
from rayzero.training.batches import text_id
from tests.encoders.tiny import TinyVision, tiny_bert, tiny_text
from tests.processes import in_processes

# What each image's study says; sentences repeat over studies, images 0 and 1 are views of one study.
SAID = (
    ("There is no effusion", "There is a nodule"),
    ("There is no effusion", "There is a nodule"),
    ("There is no effusion",),
    ("There is edema", "There is a nodule", "There is no fracture"),
    ("There is a fracture",),
    ("There is edema",),
)


def model(folder: Path) -> RadZero:
    torch.manual_seed(0)
    built = RadZero(TinyVision(), tiny_text(folder), RadZeroSettings(blocks=1, heads=2, balanced=True)).double()
    return built.eval()  # no dropout: its draws differ between layouts


def batch(text: TextEncoder, images: range) -> Batch:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(len(SAID), 1, 8, 8, dtype=torch.float64, generator=generator)
    distinct = sorted({s for i in images for s in SAID[i]})
    tokens = text.tokenize(distinct)
    return Batch(
        texts=TokenBatch(tokens.ids, tokens.mask),
        text_ids=torch.tensor([text_id(s) for s in distinct]),
        positives=torch.tensor([[s in SAID[i] for s in distinct] for i in images]),
        pixels=pixels[images.start : images.stop],
    )


def gradients(network: AlignmentModel) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def process(rank: int, folder: str) -> None:
    world = dist.get_world_size()
    # Unequal shares: the last process takes the rest.
    share = range(rank, rank + 1) if rank < world - 1 else range(world - 1, len(SAID))
    network = model(Path(folder))
    loss = network.loss(batch(network.text, share), None)["loss"]
    loss.backward()
    grads = gradients(network)
    for grad in grads.values():
        dist.all_reduce(grad)
        grad /= world  # what a training engine does
    torch.save({"loss": loss.detach(), "grads": grads}, f"{folder}/rank{rank}.pt")


@pytest.mark.parametrize("world", [2, 4])
def test_processes_equal_one(world: int, tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    network = model(tmp_path)
    loss = network.loss(batch(network.text, range(len(SAID))))["loss"]
    loss.backward()
    expected = gradients(network)
    in_processes(world, process, str(tmp_path))
    for rank in range(world):
        got = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(got["loss"], loss.detach(), rtol=0, atol=1e-12)
        assert got["grads"].keys() == expected.keys()
        for name, grad in expected.items():
            torch.testing.assert_close(got["grads"][name], grad, rtol=1e-9, atol=1e-12, msg=name)
