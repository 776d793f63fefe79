"""The cross-modal knowledge bank's read: attention over a learned bank, nothing of size (B, K) saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rayzero.ops.precision import as_given, wide
from rayzero.ops.recomputation import computed_again

# Elements of one (rows, K) tile of attention.
_TILE_ELEMENTS = 1 << 20


def knowledge_bank(query: Tensor, bank: Tensor) -> Tensor:
    """softmax(query bank') bank, with neither scale nor normalisation (BrgSA spec, section 4).

    The backward pass recomputes the attention from its log-denominators, the B scalars that are saved.

    Args:
        query: (B, D), of an image or of a text.
        bank: (K, D) learned entries, keys and values at once.

    Returns:
        (B, D) in the dtype of ``query``; half precision is computed in float32.

    Raises:
        ValueError: shapes that do not fit, or nothing in them.
    """
    if query.ndim != 2 or bank.ndim != 2 or query.shape[1] != bank.shape[1] or not query.numel() or not bank.numel():
        raise ValueError(
            f"query {tuple(query.shape)} and bank {tuple(bank.shape)} must be (B, D) and (K, D), not empty"
        )
    with as_given(query):
        result: Tensor = _KnowledgeBank.apply(query, bank)
    return result


def knowledge_bank_reference(query: Tensor, bank: Tensor) -> Tensor:
    """The formula as published, the oracle for ``knowledge_bank``."""
    return (query @ bank.T).softmax(dim=-1) @ bank


class _KnowledgeBank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, bank: Tensor) -> Tensor:
        entries = wide(bank)
        out, log_totals = torch.empty_like(query), entries.new_empty((query.shape[0], 1))
        for rows in _tiles(query, bank):
            scores = wide(query[rows]) @ entries.T
            log_totals[rows] = scores.logsumexp(dim=1, keepdim=True)
            out[rows] = (scores.sub_(log_totals[rows]).exp_() @ entries).to(out.dtype)
        ctx.save_for_backward(query, bank, log_totals)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        query, bank, log_totals = ctx.saved_tensors
        entries = wide(bank)
        grad_query, grad_bank = torch.empty_like(query), torch.zeros_like(entries)
        for rows in _tiles(query, bank):
            some, upstream = wide(query[rows]), wide(grads[0][rows])
            with computed_again():
                attention = (some @ entries.T).sub_(log_totals[rows]).exp_()
            slope = upstream @ entries.T
            slope.sub_(torch.linalg.vecdot(attention, slope).unsqueeze(1)).mul_(attention)
            grad_query[rows] = (slope @ entries).to(query.dtype)
            grad_bank.addmm_(slope.T, some).addmm_(attention.T, upstream)
        return grad_query, grad_bank.to(bank.dtype)


def _tiles(query: Tensor, bank: Tensor) -> Iterator[slice]:
    step = max(1, _TILE_ELEMENTS // bank.shape[0])
    return (slice(start, start + step) for start in range(0, query.shape[0], step))
