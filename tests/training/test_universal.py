"""A checkpoint goes on at any ZeRO stage and on another number of processes as if nothing had changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from rayzero.config import Config, load_config
from rayzero.training import engine as engines
from rayzero.training import universal
from rayzero.training.checkpoint import TAG, Found, LoopState, _optimizer_names
from rayzero.training.manifest import Manifest, Stored
from tests.alignment.test_many_processes import SAID, batch, model
from tests.encoders.tiny import tiny_bert
from tests.processes import in_processes
from tests.training import plain
from tests.training.test_engine import single

STAGES = (0, 1, 2, 3)
BEFORE, AFTER = 2, 2
# Stages (before, after): one process goes on as two, two go on as one.
PAIRS = {1: [(0, 1), (0, 3), (1, 1), (1, 3), (2, 0), (3, 2)], 2: [(0, 0), (1, 0), (1, 2), (2, 3), (3, 1), (3, 3)]}


def settings(zero_stage: int) -> Config:
    # Decay so strong that a group with the settings of another one shows at once.
    changes = [f"training.zero_stage={zero_stage}", "training.weight_decay=2", "training.gradient_clip=0.1"]
    # Adam divides by eps what has no gradient but rounding, such as biases that softmax cannot see.
    return load_config(None, [*changes, "training.lr=0.01", "training.eps=1e-5"])


def built(folder: Path, zero_stage: int):  # type: ignore[no-untyped-def]
    network = model(folder).float()
    engine = engines.build_engine(network, settings(zero_stage))
    network.eval()  # no dropout: its draws differ between layouts
    return engine


def train(engine, steps: int) -> None:  # type: ignore[no-untyped-def]
    rank, world = dist.get_rank(), dist.get_world_size()
    share = range(len(SAID) * rank // world, len(SAID) * (rank + 1) // world)
    data = single(batch(engine.module.text, share))
    for _ in range(steps):
        engine.backward(engine(data)["loss"])
        engine.step()


def weights(engine) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return {name: p.detach().clone() for name, p in engine.module.named_parameters()}


def save_all(folder: Path) -> None:
    """Train a little at every stage, and save."""
    for stage in STAGES:
        engine = built(folder, stage)
        train(engine, BEFORE)
        client = {"optimizer_names": _optimizer_names(engine)} if stage == 0 else {}
        target = folder / f"{dist.get_world_size()}-{stage}"
        engine.save_checkpoint(
            str(target), tag=TAG, client_state=client, save_latest=False, exclude_frozen_parameters=True
        )
    dist.barrier()


def load_all(folder: Path, world: int) -> dict[tuple[int, int], dict[str, Tensor]]:
    """Go on from what ``world`` processes saved, from every stage to every stage."""
    ended = {}
    for before, after in PAIRS[world]:
        converted = folder / f"{world}-{before}-{after}"
        if dist.get_rank() == 0:
            source = folder / f"{world}-{before}" / TAG
            universal.convert(source, converted / TAG, model(folder).float(), zero_stage=before, step=BEFORE)
        dist.barrier()
        engine = built(folder, after)
        stored = Stored("checkpoint", "", (Manifest(0, world, before, BEFORE, {}, {"step": BEFORE, "progress": {}}),))
        state = Found(stored, converted, resharded=True).load(engine)
        assert state == LoopState(step=BEFORE)
        train(engine, AFTER)
        ended[before, after] = weights(engine)
    return ended


def work(rank: int, folder: str, save: bool, load: int | None) -> None:
    """What each process does; DeepSpeed keeps a process's first world, so never in pytest's own."""
    if save:
        save_all(Path(folder))
    if load is not None:
        ended = load_all(Path(folder), load)
        if rank == 0:
            torch.save(ended, f"{folder}/ended-{load}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("universal")
    tiny_bert(path)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Tensor]:
    """The uninterrupted run in plain PyTorch."""
    network = model(folder).float()
    data = single(batch(network.text, range(len(SAID))))
    return plain.train(network, settings(0), data, BEFORE + AFTER).weights


@pytest.fixture(scope="module")
def ended(folder: Path, expected: dict[str, Tensor]) -> dict[tuple[int, int, int], dict[str, Tensor]]:
    """Final weights by (processes before, stage before, stage after); one process goes on as two, two as one."""
    in_processes(1, work, str(folder), True, None)
    in_processes(2, work, str(folder), True, 1)
    in_processes(1, work, str(folder), False, 2)
    saved = {processes: torch.load(folder / f"ended-{processes}.pt", weights_only=True) for processes in PAIRS}
    return {(processes, *stages): value for processes, ended in saved.items() for stages, value in ended.items()}


@pytest.mark.parametrize(("processes", "before", "after"), [(n, *pair) for n, pairs in PAIRS.items() for pair in pairs])
def test_another_layout_goes_on_with_the_same_weights(
    processes: int,
    before: int,
    after: int,
    ended: dict[tuple[int, int, int], dict[str, Tensor]],
    expected: dict[str, Tensor],
) -> None:
    got = ended[processes, before, after]
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=2e-4, msg=name)
