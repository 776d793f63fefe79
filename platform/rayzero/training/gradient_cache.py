"""A step on a batch whose activations do not fit: two passes over chunks, with the gradients of the one-shot step.

The first pass keeps of each chunk only what ``represent`` gives; the objective over the whole batch then says
what the gradient of each row is; the second pass represents each chunk again and sends its rows' gradients back.
A chunk draws the same dropout in both passes. The method is known as GradCache (arXiv 2101.06983, section 3).

The chunk that comes last in the first pass is the first of the second: it keeps its graph, and the objective's
gradient runs straight through it. So the first of the backward calls reaches every parameter, those of the objective
included; ZeRO 3 counts on that, because it overwrites gradients in the first call of a step and adds in the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rayzero.alignment.base import Batch
from rayzero.ops.collectives import largest_of_processes


class Forward(Protocol):
    """``PretrainingModel.forward``, or an engine around it."""

    def __call__(
        self,
        batch: Batch,
        group: ProcessGroup | None = None,
        *,
        stage: str = "loss",
        represented: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """See ``PretrainingModel.forward``."""


class Backward(Protocol):
    """``loss.backward()``, told whether another call of the same step follows."""

    def __call__(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradients of ``loss``."""


def cached_backward(
    forward: Forward, backward: Backward, batch: Batch, chunks: int, group: ProcessGroup | None = None
) -> dict[str, Tensor]:
    """Accumulate the gradients of ``batch`` in ``chunks`` chunks; returns the losses, detached.

    Activations held at a time are those of one chunk and of the objective, plus the rows that ``represent`` gives of
    the whole batch. Where a process has fewer images or texts than ``chunks``, all make fewer chunks.
    """
    # A share with few distinct texts makes fewer chunks; all processes make as many, for an engine may exchange
    # gradients in every backward call.
    possible = min(chunks, len(batch), batch.text_ids.shape[0])
    *early, final = batch.chunks(-largest_of_processes(-possible, batch.text_ids.device, group))
    states: list[list[Tensor]] = []
    rows: list[dict[str, Tensor]] = []
    for part in early:
        states.append(_random_state(batch))
        with torch.no_grad():
            given = forward(part, stage="represent")
        # Parts of a model that does not train give rows without a gradient.
        rows.append({name: row.requires_grad_() if row.is_floating_point() else row for name, row in given.items()})
    rows.append(dict(forward(final, stage="represent")))
    joined = {name: torch.cat([part[name] for part in rows]) for name in rows[-1]}
    losses = forward(replace(batch, pixels=None, features=None), group, stage="objective", represented=joined)
    backward(losses["loss"], last=not early)
    for index, part in enumerate(early):
        with _replayed(states[index], batch):
            again = forward(part, stage="represent")
        terms = []
        for name, value in again.items():
            grad = rows[index][name].grad
            if grad is not None and value.requires_grad:
                terms.append((value * grad).sum())
        backward(torch.stack(terms).sum(), last=index + 1 == len(early))
    return {name: value.detach() for name, value in losses.items()}


def _random_state(batch: Batch) -> list[Tensor]:
    device = batch.text_ids.device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextmanager
def _replayed(state: list[Tensor], batch: Batch) -> Iterator[None]:
    """Random numbers as they were at ``state``; afterwards as they are now."""
    device = batch.text_ids.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if len(state) > 1:
            torch.cuda.set_rng_state(state[1], device)
        yield
