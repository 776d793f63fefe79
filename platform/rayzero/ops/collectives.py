"""Collectives with exact gradients for losses over a batch that is sharded over processes.

Convention: the loss is a sum of one share per process. Every process calls backward on ``W`` times its own
share, and the training engine *averages* parameter gradients, so each parameter ends with the gradient of the
whole loss. ``group=None`` outside an initialised process group means one process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def world_size(group: ProcessGroup | None) -> int:
    """Processes in ``group`` (the default group for None); 1 where no group is initialised."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank_in(group: ProcessGroup | None) -> int:
    """This process's place in ``group``; 0 where no group is initialised."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


def gather_rows(rows: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Rows (n_r, ...) of every process, concatenated in rank order; n_r may differ.

    The backward pass sums each row's gradient over the processes and returns every process its own rows.
    """
    if world_size(group) == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows, group)
    return gathered


def sum_over_processes(value: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The sum of ``value`` over the processes, detached."""
    total = value.detach().clone()
    if world_size(group) > 1:
        dist.all_reduce(total, group=group)
    return total


def largest_of_processes(value: int, device: torch.device, group: ProcessGroup | None = None) -> int:
    """The largest ``value`` of all processes."""
    if world_size(group) == 1:
        return value
    largest = torch.tensor([value], device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return int(largest)


def shared_value(share: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """A scalar whose value is the sum of the processes' shares and whose gradient is W times this share's."""
    scaled = share * world_size(group)
    return scaled + (sum_over_processes(share, group) - scaled.detach())


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: ProcessGroup | None) -> Tensor:
        size = world_size(group)
        count = torch.tensor([rows.shape[0]], device=rows.device)
        counts = [torch.zeros_like(count) for _ in range(size)]
        dist.all_gather(counts, count, group=group)
        lengths = [int(c) for c in counts]
        # all_gather wants equal shapes: pad to the longest, then trim.
        padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(parts, padded, group=group)
        rank = dist.get_rank(group)
        ctx.group, ctx.start, ctx.length = group, sum(lengths[:rank]), lengths[rank]
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad[ctx.start : ctx.start + ctx.length], None
