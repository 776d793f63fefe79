"""The engine's step on two processes, at every ZeRO stage and in chunks, equals plain PyTorch on the whole batch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from rayzero.alignment.base import Batch
from rayzero.config import Config, load_config
from rayzero.training import engine as engines
from rayzero.training.gradient_cache import cached_backward
from tests.alignment.test_many_processes import SAID, batch, model
from tests.encoders.tiny import tiny_bert
from tests.processes import in_processes
from tests.training.plain import train

STEPS = 3
OFFLOAD, RECOMPUTE = "training.offload=optimizer", "training.activation_checkpointing=true"
# ZeRO stage, chunks, and a setting that must not change what a step computes.
LAYOUTS = [(zero_stage, chunks, "") for zero_stage in (0, 1, 2, 3) for chunks in (1, 3)]
BF16 = "training.precision=bf16"
LAYOUTS += [(1, 1, OFFLOAD), (2, 1, OFFLOAD), (3, 1, OFFLOAD), (1, 3, RECOMPUTE), (3, 1, RECOMPUTE)]
# Last: DeepSpeed keeps for the whole process that autocast was on. It does so, too, with the function that it puts in
# place of torch's linear layers at stage 3, which rounds in another order: all of these have it.
HALF = [(zero_stage, 1, BF16) for zero_stage in (0, 1, 2, 3)]


def settings(zero_stage: int, chunks: int, more: str = "") -> Config:
    changes = [f"training.zero_stage={zero_stage}", f"training.chunks={chunks}", "training.workers=2"]
    changes += ["training.batch_size=6", "training.lr=0.01", "training.gradient_clip=0.1"]
    # Adam divides by it what has no gradient but rounding, such as biases that softmax cannot see.
    changes += ["training.eps=1e-5"]
    return load_config(None, [*changes, *([more] if more else [])])


def single(data: Batch) -> Batch:
    """In single precision, which is what engines are for."""
    assert data.pixels is not None
    return replace(data, pixels=data.pixels.float())


def process(rank: int, folder: str) -> None:
    """Take the steps at every stage, and save the weights."""
    import deepspeed

    for zero_stage, chunks, more in LAYOUTS + HALF:
        network = model(Path(folder)).float()
        engine = engines.build_engine(network, settings(zero_stage, chunks, more))
        if rank == 0 and zero_stage == 0:
            torch.save([network.text.network.training, network.blocks.training], f"{folder}/training.pt")
        network.eval()  # no dropout: its draws differ between layouts
        # Unequal shares: two images can be cut into two chunks at most.
        share = single(batch(network.text, range(2) if rank == 0 else range(2, len(SAID))))
        recomputed = sum(getattr(part.forward, "func", None) is checkpoint for part in network.modules())
        half = [name for name, p in network.named_parameters() if getattr(p, "comm_dtype", p.dtype) != torch.float32]
        norms = []
        for _ in range(STEPS):
            if chunks == 1:
                engine.backward(engine(share)["loss"])
            else:
                cached_backward(engine, partial(engines.backward, engine), share, chunks)
            norm = engines.norm_before_step(engine)
            engine.step()
            norms.append(float(engine.get_global_grad_norm() if norm is None else norm))
        about = {"recomputed": recomputed, "half": half, "norms": norms}
        torch.save(about, f"{folder}/about-{zero_stage}-{chunks}-{more}-{rank}.pt")
        with deepspeed.zero.GatheredParameters(list(network.parameters())):
            weights = {name: p.detach().clone() for name, p in network.named_parameters()}
        torch.save(weights, f"{folder}/{zero_stage}-{chunks}-{more}-{rank}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes made of a tiny model at every stage."""
    folder = tmp_path_factory.mktemp("engine")
    tiny_bert(folder)
    in_processes(2, process, str(folder))
    return folder


def plain(folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same steps without an engine: the weights, and the norm of each step's gradient."""
    network = model(folder).float()
    curve = train(network, settings(0, 1), single(batch(network.text, range(len(SAID)))), STEPS)
    return curve.weights, curve.norms


@pytest.mark.parametrize(("zero_stage", "chunks", "more"), LAYOUTS)
def test_every_stage_takes_the_plain_step(zero_stage: int, chunks: int, more: str, trained: Path) -> None:
    start = {name: p.detach().clone() for name, p in model(trained).float().named_parameters()}
    expected, norms = plain(trained)
    assert any(not torch.equal(value, start[name]) for name, value in expected.items())
    for rank in range(2):
        got = torch.load(trained / f"{zero_stage}-{chunks}-{more}-{rank}.pt", weights_only=True)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-3, atol=2e-4, msg=name)
        about = torch.load(trained / f"about-{zero_stage}-{chunks}-{more}-{rank}.pt", weights_only=True)
        assert about["norms"] == pytest.approx(norms, rel=1e-3)
        # RadZero's one block, and the two layers of the text encoder.
        assert about["recomputed"] == (3 if more == RECOMPUTE else 0)


def test_under_bf16_gradients_are_exchanged_in_fp32_at_every_stage(trained: Path) -> None:
    about = {
        zero_stage: torch.load(trained / f"about-{zero_stage}-{chunks}-{more}-0.pt", weights_only=True)
        for zero_stage, chunks, more in HALF
    }
    assert about[0]["norms"] != pytest.approx(plain(trained)[1], rel=1e-4)
    for zero_stage, of_stage in about.items():
        assert of_stage["half"] == []
        # To the precision of fp32 in the first step; then weights that differ in their last bit are rounded to bf16.
        first, second, _ = of_stage["norms"]
        assert first == pytest.approx(about[0]["norms"][0], rel=1e-5), zero_stage
        assert second == pytest.approx(about[0]["norms"][1], rel=1e-3), zero_stage


def test_a_pretrained_encoder_is_trained_with_its_dropout(trained: Path) -> None:
    # Transformers hands encoders out in inference mode.
    assert torch.load(trained / "training.pt", weights_only=True) == [True, True]
