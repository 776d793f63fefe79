"""The engine's step on two processes, at every ZeRO stage and in chunks, equals plain PyTorch on the whole batch."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rayzero.config import Config, load_config
from rayzero.training import engine as engines
from rayzero.training.gradient_cache import cached_backward
from tests.alignment.test_many_processes import SAID, batch, model
from tests.encoders.tiny import tiny_bert

STEPS = 3


def settings(zero_stage: int, chunks: int) -> Config:
    changes = [f"training.zero_stage={zero_stage}", f"training.chunks={chunks}", "training.workers=2"]
    return load_config(None, [*changes, "training.batch_size=6", "training.lr=0.01", "training.gradient_clip=0.1"])


def process(rank: int, port: int, zero_stage: int, chunks: int, folder: str) -> None:
    import deepspeed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    config = settings(zero_stage, chunks)
    network = model(Path(folder)).float()
    engine = engines.build_engine(network, config)
    network.eval()  # no dropout: its draws differ between layouts
    share = batch(network.text, range(3) if rank == 0 else range(3, len(SAID)))
    share.pixels = share.pixels.float()
    for _ in range(STEPS):
        if chunks == 1:
            engine.backward(engine(share)["loss"])
        else:
            cached_backward(engine, partial(engines.backward, engine), share, chunks)
        engine.step()
    with deepspeed.zero.GatheredParameters(list(network.parameters())):
        weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    torch.save(weights, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def plain(folder: Path) -> dict[str, torch.Tensor]:
    """The same steps without an engine."""
    config = settings(0, 1)
    network = model(folder).float()
    training = config.training
    optimizer = torch.optim.AdamW(
        engines.parameter_groups(network, config), lr=training.lr, betas=training.betas, eps=training.eps
    )
    data = batch(network.text, range(len(SAID)))
    data.pixels = data.pixels.float()
    trained = [p for p in network.parameters() if p.requires_grad]
    for _ in range(STEPS):
        optimizer.zero_grad()
        network.loss(data)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trained, training.gradient_clip)
        optimizer.step()
    return {name: p.detach() for name, p in network.named_parameters()}


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_every_stage_takes_the_plain_step(zero_stage: int, chunks: int, tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    start = {name: p.detach().clone() for name, p in model(tmp_path).float().named_parameters()}
    expected = plain(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(process, args=(port, zero_stage, chunks, str(tmp_path)), nprocs=2)
    moved = 0
    for rank in range(2):
        got = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            moved += not torch.equal(value, start[name])
            torch.testing.assert_close(got[name], value, rtol=1e-3, atol=2e-4, msg=name)
    assert moved


def _one(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    dist.init_process_group("gloo", rank=0, world_size=1)
    network = model(Path(folder)).float().eval()
    for parameter in network.vision.parameters():
        parameter.requires_grad_(False)
    engines.build_engine(network, load_config(None, []))
    # Transformers hands encoders out in inference mode: trained like that, they would miss their dropout.
    assert network.text.network.training
    assert network.blocks.training
    assert not network.vision.training
    dist.destroy_process_group()


def test_what_trains_is_in_training_mode_and_what_is_frozen_is_not(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_one, args=(port, str(tmp_path)), nprocs=1)
