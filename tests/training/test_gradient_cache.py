"""Chunked steps give the gradients of the one-shot step, dropout included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import ProcessGroup

from rayzero.alignment.base import Batch
from rayzero.training.gradient_cache import cached_backward
from tests.alignment.test_many_processes import SAID, batch, gradients, model
from tests.encoders.tiny import tiny_bert


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_cached_gradients_equal_the_one_shot_step(tmp_path: Path, chunks: int) -> None:
    tiny_bert(tmp_path)
    whole = model(tmp_path)
    data = batch(whole.text, range(len(SAID)))
    expected = whole.loss(data)
    expected["loss"].backward()
    network = model(tmp_path)
    calls: list[bool] = []

    def backward(loss: torch.Tensor, *, last: bool) -> None:
        calls.append(last)
        loss.backward()

    losses = cached_backward(network, backward, data, chunks)
    torch.testing.assert_close(losses["loss"], expected["loss"].detach(), rtol=0, atol=1e-12)
    assert calls == [False] * (chunks - 1) + [True]
    mine, theirs = gradients(network), gradients(whole)
    assert set(mine) == set(theirs)
    for name, grad in theirs.items():
        torch.testing.assert_close(mine[name], grad, rtol=0, atol=1e-10, msg=name)


def test_a_chunk_draws_its_dropout_again(tmp_path: Path) -> None:
    """Both passes see the same dropout: the surrogate's value is the inner product of rows and their gradients."""
    tiny_bert(tmp_path)
    network = model(tmp_path).train()
    data = batch(network.text, range(len(SAID)))
    seen: list[torch.Tensor] = []
    original = network.represent

    def represent(part):  # type: ignore[no-untyped-def]
        rows = original(part)
        seen.append(rows["queries"].detach())
        return rows

    network.represent = represent  # type: ignore[method-assign]
    torch.manual_seed(3)
    cached_backward(network, lambda loss, *, last: loss.backward(), data, 2)
    # The last chunk is represented once: it keeps its graph.
    assert len(seen) == 3
    torch.testing.assert_close(seen[0], seen[2], rtol=0, atol=0)
    assert not torch.equal(original(data.chunks(2)[0])["queries"], seen[0])


def test_chunks_under_autocast_are_the_one_shot_step_to_its_precision(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    whole, network = model(tmp_path).float(), model(tmp_path).float()
    data = batch(whole.text, range(len(SAID)))
    assert data.pixels is not None
    data = replace(data, pixels=data.pixels.float())

    def half(batch: Batch, group: ProcessGroup | None = None, **how: Any) -> dict[str, torch.Tensor]:
        # As an engine does: a call at a time.
        with torch.autocast("cpu", torch.bfloat16):
            given: dict[str, torch.Tensor] = network(batch, group, **how)
        return given

    with torch.autocast("cpu", torch.bfloat16):
        expected = whole.loss(data)["loss"]
    expected.backward()
    losses = cached_backward(half, lambda loss, *, last: loss.backward(), data, 3)
    torch.testing.assert_close(losses["loss"], expected.detach(), rtol=1e-2, atol=1e-2)
    mine, theirs = gradients(network), gradients(whole)
    assert set(mine) == set(theirs)
    single = model(tmp_path).float()
    single.loss(data)["loss"].backward()
    exact = gradients(single)
    norm = torch.linalg.vector_norm
    for name, grad in theirs.items():
        # How much half precision rounds away depends on the processor: the one-shot step's own error says it.
        bound = 0.05 * norm(grad) + 1e-6 + 2 * norm(grad - exact[name])
        assert norm(mine[name] - grad) <= bound, name


def test_a_small_batch_makes_fewer_chunks(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    network = model(tmp_path)
    calls: list[bool] = []

    def backward(loss: torch.Tensor, *, last: bool) -> None:
        calls.append(last)
        loss.backward()

    cached_backward(network, backward, batch(network.text, range(2)), 9)
    assert calls == [False, True]
