"""Every system has the same loss curve at every ZeRO stage and on one, two and four processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rayzero.alignment.base import Batch, PretrainingModel
from rayzero.config import Config, load_config
from rayzero.training import engine as engines
from tests.alignment import records, test_brgsa_processes, test_carzero, test_many_processes
from tests.encoders.tiny import tiny_bert
from tests.processes import in_processes
from tests.training.plain import train

STEPS = 4
# Processes and stages: four processes at the stages that shard least and most.
LAYOUTS = {2: (0, 1, 2, 3), 4: (1, 3)}


@dataclass(frozen=True)
class Case:
    """A tiny model of a system, its examples, and how many there are."""

    model: Callable[[Path], PretrainingModel]
    batch: Callable[[PretrainingModel, range], Batch]
    examples: int


CASES = {
    "radzero": Case(
        test_many_processes.model,
        lambda network, images: test_many_processes.batch(network.text, images),
        len(test_many_processes.SAID),
    ),
    "carzero": Case(
        lambda folder: test_carzero.model(folder, word_slots=97, balanced=True),
        lambda network, images: test_carzero.share_of(network, images, "sentence"),  # type: ignore[arg-type]
        len(test_carzero.DRAWN),
    ),
    "brgsa": Case(
        test_brgsa_processes.model,
        test_brgsa_processes.batch,  # type: ignore[arg-type]
        len(test_brgsa_processes.CAPTIONS),
    ),
    "alta": Case(records.alta, lambda network, images: records.batch(network.text, images), len(records.SAID)),
    "mrm": Case(records.mrm, lambda network, images: records.batch(network.text, images), len(records.SAID)),
}


def settings(zero_stage: int) -> Config:
    # Adam divides by eps what has no gradient but rounding, such as biases that softmax cannot see.
    changes = [f"training.zero_stage={zero_stage}", "training.lr=0.002", "training.gradient_clip=1"]
    return load_config(None, [*changes, "training.eps=1e-5"])


def examples(case: Case, network: PretrainingModel, rank: int, world: int) -> Batch:
    """A process's share of the same global batch, in the precision of engines; shares differ in size."""
    share = range(case.examples * rank // world, case.examples * (rank + 1) // world)
    data = case.batch(network, share)
    assert data.pixels is not None
    return replace(data, pixels=data.pixels.float())


def curve(case: Case, folder: Path, zero_stage: int) -> list[float]:
    """The losses of a few steps."""
    network = case.model(folder).float()
    engine = engines.build_engine(network, settings(zero_stage))
    network.eval()  # no dropout: its draws differ between layouts
    data = examples(case, network, dist.get_rank(), dist.get_world_size())
    losses = []
    for _ in range(STEPS):
        torch.manual_seed(3)  # what is hidden
        loss = engine(data)["loss"]
        losses.append(float(loss))
        engine.backward(loss)
        engine.step()
    return losses


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    world = dist.get_world_size()
    curves = {
        (name, stage): curve(case, Path(folder), stage) for name, case in CASES.items() for stage in LAYOUTS[world]
    }
    torch.save(curves, f"{folder}/curves-{world}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where processes left the curves of all systems."""
    path = tmp_path_factory.mktemp("systems")
    torch.manual_seed(3)
    tiny_bert(path)
    for world in LAYOUTS:
        in_processes(world, process, str(path))
    return path


@pytest.mark.parametrize("system", CASES)
def test_the_loss_curve_is_that_of_plain_pytorch(system: str, folder: Path) -> None:
    case = CASES[system]
    network = case.model(folder).float()
    data = examples(case, network, 0, 1)
    expected = train(network, settings(0), data, STEPS, before=lambda: torch.manual_seed(3)).losses
    assert expected[0] != expected[-1]
    for world, stages in LAYOUTS.items():
        for rank in range(world):
            curves = torch.load(folder / f"curves-{world}-{rank}.pt", weights_only=True)
            for stage in stages:
                assert curves[system, stage] == pytest.approx(expected, rel=2e-4), (world, stage)
