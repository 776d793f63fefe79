"""CARZero's cross-attention decoder over all pairs of memories and queries, exact, one tile of pairs at a time.

A memory is the tokens of one image (or text), a query the vector of one text (or image). Each pair passes L pre-norm
layers of cross-attention and feed-forward and ends in one number (CARZero spec, section 4):

    m = LN(memory),  x = LN(query)
    x <- x + drop(MHA_l(LN2_l(x), m, m));  x <- x + drop(FFN_l(LN3_l(x)))        for each layer l
    score = head(drop(LN(x)))

Everything after the first query projection belongs to the pair, 105 thousand saved numbers of it at the paper's size.
Here the forward pass keeps none: the backward pass recomputes each tile with the random state it had, so dropout is the
same. Empty word slots are equal keys and become one key that counts for all of them; the first query is projected
once per query; projections are folded into the keys or into the queries where that is less work (reductions 1, 2, 3
and 5 of section 9).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rayzero.ops.pairwise_decoder import DecoderWeights, Form, cheapest_fold, hoist, score_tile
from rayzero.ops.recomputation import computed_again

# Numbers that one tile holds for its backward pass: each tile also adds a gradient to every weight, so few large ones.
_TILE_ELEMENTS = 3 << 24


def pairwise_attention(
    memory: Tensor,
    queries: Tensor,
    weights: DecoderWeights,
    heads: int,
    *,
    mask: Tensor | None = None,
    zeros: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scores (M, Q) of every memory with every query.

    Args:
        memory: (M, S, D) tokens, before the norm.
        queries: (Q, D), before the norm.
        weights: of the decoder; D is a multiple of ``heads``.
        heads: of the attention.
        mask: (M, S) boolean, false where a token is padding. Every memory keeps at least one token.
        zeros: (M,) integers: how many all-zero tokens each memory has besides. Attention dropout drops each of
            them by itself, as a binomial count: equal in distribution to the expanded memory, not in the draws.
        dropout: probability, 0 outside training.

    Raises:
        ValueError: shapes that do not fit, or a memory without a token.
    """
    _check(memory, queries, weights, heads, mask, zeros)
    tokens, counts = _collapse(memory, mask, zeros)
    form = Form(heads, dropout, cheapest_fold(len(queries), tokens.shape[1], tokens.shape[2], heads), zeros is not None)
    start, first = hoist(queries, weights, form)
    scores: Tensor = _Pairs.apply(form, weights, counts, tokens, start, first, *weights.flat())
    return scores


@torch.no_grad()
def pairwise_attention_maps(
    memory: Tensor, queries: Tensor, weights: DecoderWeights, heads: int, *, mask: Tensor | None = None
) -> Tensor:
    """Attention (M, Q, S) of every query over every memory's tokens, the mean of all heads and layers; no gradient.

    Raises ValueError as ``pairwise_attention`` does.
    """
    _check(memory, queries, weights, heads, mask, None)
    form = Form(heads, 0.0, cheapest_fold(len(queries), memory.shape[1], memory.shape[2], heads), zeros=False)
    start, first = hoist(queries, weights, form)
    maps = queries.new_empty((len(memory), len(queries), memory.shape[1]))
    for rows, columns in _tiles(memory, queries, weights, heads):
        counts = None if mask is None else mask[rows].to(memory.dtype)
        seen: list[Tensor] = []
        score_tile(memory[rows], start[columns], first[..., columns, :], counts, weights, form, seen)
        maps[rows, columns] = torch.stack(seen).mean(dim=0)
    return maps


def pairwise_attention_reference(
    memory: Tensor,
    queries: Tensor,
    weights: DecoderWeights,
    heads: int,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The formula as published, the oracle: scores (M, Q) and attention (M, Q, S); all-zero tokens are spelled out."""
    count, width = len(memory), memory.shape[-1]
    norm = (weights.norm, weights.norm_bias)
    memory = F.layer_norm(memory, (width,), *norm)
    x = F.layer_norm(queries, (width,), *norm).expand(count, -1, -1).contiguous()
    maps = []

    def split(rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape[:-1], heads, width // heads).transpose(1, 2)

    for layer in weights.layers:
        query = F.layer_norm(x, (width,), layer.attention_norm, layer.attention_norm_bias)
        query = split(F.linear(query, layer.query, layer.query_bias))
        key = split(F.linear(memory, layer.key, layer.key_bias))
        value = split(F.linear(memory, layer.value, layer.value_bias))
        logits = query @ key.transpose(-1, -2) / (width // heads) ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
        attention = logits.softmax(dim=-1)
        maps.append(attention.mean(dim=1))
        attended = (F.dropout(attention, dropout) @ value).transpose(1, 2).flatten(2)
        x = x + F.dropout(F.linear(attended, layer.output, layer.output_bias), dropout)
        hidden = F.layer_norm(x, (width,), layer.feedforward_norm, layer.feedforward_norm_bias)
        hidden = F.dropout(F.relu(F.linear(hidden, layer.expand, layer.expand_bias)), dropout)
        x = x + F.dropout(F.linear(hidden, layer.contract, layer.contract_bias), dropout)
    x = F.layer_norm(x, (width,), *norm)
    for index, (weight, bias) in enumerate(weights.head):
        x = F.linear(F.dropout(F.relu(x) if index else x, dropout), weight, bias)
    return x.squeeze(-1), torch.stack(maps).mean(dim=0)


def _check(
    memory: Tensor, queries: Tensor, weights: DecoderWeights, heads: int, mask: Tensor | None, zeros: Tensor | None
) -> None:
    width = weights.norm.shape[0]
    if memory.ndim != 3 or queries.ndim != 2 or memory.shape[2] != width or queries.shape[1] != width:
        raise ValueError(
            f"memory {tuple(memory.shape)} and queries {tuple(queries.shape)} must be (M, S, D) and (Q, D), D = {width}"
        )
    if heads < 1 or width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")
    if memory.shape[1] == 0:
        raise ValueError("a memory needs at least one token, S is 0")
    if mask is not None and (mask.shape != memory.shape[:2] or not bool(mask.any(dim=1).all())):
        raise ValueError(f"mask must be (M, S) = {tuple(memory.shape[:2])} with a true entry in every row")
    if zeros is not None and (zeros.shape != memory.shape[:1] or bool((zeros < 0).any())):
        raise ValueError(f"zeros must be (M,) = {tuple(memory.shape[:1])} counts, none negative")


def _collapse(memory: Tensor, mask: Tensor | None, zeros: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The memory with one zero token for all of them at its end, and how many tokens each one stands for."""
    if mask is None and zeros is None:
        return memory, None
    counts = memory.new_ones(memory.shape[:2]) if mask is None else mask.to(memory.dtype)
    if zeros is None:
        return memory, counts
    return F.pad(memory, (0, 0, 0, 1)), torch.cat([counts, zeros.unsqueeze(1).to(counts.dtype)], dim=1)


def _tiles(memory: Tensor, queries: Tensor, weights: DecoderWeights, heads: int) -> Iterator[tuple[slice, slice]]:
    """Runs of memories and of queries that cover all pairs, whose activations fit the budget."""
    (items, tokens, width), count, depth = memory.shape, len(queries), len(weights.layers)
    pair = depth * ((6 + 2 * heads) * width + 3 * len(weights.layers[0].expand) + heads * tokens)
    pair += sum(3 * len(part[0]) for part in weights.head)
    item = (2 * depth + 2) * tokens * width
    columns = min(count, max(1, _TILE_ELEMENTS // pair))
    rows = max(1, _TILE_ELEMENTS // (columns * pair + item))
    for top in range(0, items, rows):
        for left in range(0, count, columns):
            yield slice(top, min(top + rows, items)), slice(left, min(left + columns, count))


class _Draws:
    """The state of the random generators that dropout draws from."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.host = torch.get_rng_state()
        self.cuda = [torch.cuda.get_rng_state(one) for one in self.devices]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw once more what was drawn from here; the generators themselves do not move."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.host)
            for device, state in zip(self.devices, self.cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


class _Pairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        form: Form,
        weights: DecoderWeights,
        counts: Tensor | None,
        memory: Tensor,
        start: Tensor,
        first: Tensor,
        *flat: Tensor,
    ) -> Tensor:
        # The norms of an autocast region give fp32; its tiles come in half precision.
        scores = start.new_empty((len(memory), len(start)))
        ctx.draws = []
        for rows, columns in _tiles(memory, start, weights, form.heads):
            if form.dropout:
                ctx.draws.append(_Draws(memory.device))
            part = None if counts is None else counts[rows]
            scores[rows, columns] = score_tile(
                memory[rows], start[columns], first[..., columns, :], part, weights, form
            )
        kind = memory.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.form, ctx.structure = form, weights
        ctx.save_for_backward(counts, memory, start, first, *flat)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        counts, memory, start, first, *flat = ctx.saved_tensors
        needed: list[bool] = list(ctx.needs_input_grad[3:])
        # Leaves of their own, so that each tile adds to their gradients as soon as it has them.
        leaves = [t.detach().requires_grad_(n) for t, n in zip((start, first, *flat), needed[1:], strict=True)]
        weights = ctx.structure.like(leaves[2:])
        memory_grad = torch.zeros_like(memory)
        for index, (rows, columns) in enumerate(_tiles(memory, start, weights, ctx.form.heads)):
            tokens = memory[rows].detach().requires_grad_(needed[0])
            part = None if counts is None else counts[rows]
            drawn: AbstractContextManager[None] = ctx.draws[index].again() if ctx.draws else nullcontext()
            with torch.enable_grad(), torch.autocast(*ctx.autocast), drawn, computed_again():
                scores = score_tile(tokens, leaves[0][columns], leaves[1][..., columns, :], part, weights, ctx.form)
            scores.backward(grads[0][rows, columns].to(scores.dtype))
            if tokens.grad is not None:
                memory_grad[rows] += tokens.grad
        sums = [memory_grad, *(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves)]
        return None, None, None, *(total if need else None for total, need in zip(sums, needed, strict=True))
