"""One tile of CARZero's pairwise decoder, and its weights: what ``pairwise_attention`` runs tile by tile.

Attention comes in three exact forms, and the one with the fewest multiplications is taken. Keys and values are
projected and attention is fused; or a short memory with many queries takes the query and output projections of each
head into its keys and values (CARZero spec, section 9, reduction 3); or, its mirror image, few queries take the key
and value projections, and a long memory is never projected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class LayerWeights(NamedTuple):
    """One decoder layer: linear weights are (out, in), D wide; the feed-forward part is F wide."""

    attention_norm: Tensor
    attention_norm_bias: Tensor
    query: Tensor
    query_bias: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor
    output: Tensor
    output_bias: Tensor
    feedforward_norm: Tensor
    feedforward_norm_bias: Tensor
    expand: Tensor
    expand_bias: Tensor
    contract: Tensor
    contract_bias: Tensor


class DecoderWeights(NamedTuple):
    """A decoder: ``norm`` serves memory, queries and result alike; ``head`` has ReLU and dropout between its parts."""

    norm: Tensor
    norm_bias: Tensor
    layers: tuple[LayerWeights, ...]
    head: tuple[tuple[Tensor, Tensor], ...]

    def flat(self) -> list[Tensor]:
        """All tensors, in an order that ``like`` reads back."""
        return [
            self.norm,
            self.norm_bias,
            *(one for layer in self.layers for one in layer),
            *(one for part in self.head for one in part),
        ]

    def like(self, flat: list[Tensor]) -> DecoderWeights:
        """The tensors of ``flat`` in this structure."""
        rest = iter(flat)
        norm, norm_bias = next(rest), next(rest)
        layers = tuple(LayerWeights(*(next(rest) for _ in layer)) for layer in self.layers)
        return DecoderWeights(norm, norm_bias, layers, tuple((next(rest), next(rest)) for _ in self.head))


_LEVELS = 2**16  # of 16 random bits

Fold = Literal["nothing", "into_memory", "into_queries"]


@dataclass(frozen=True)
class Form:
    """How a decoder is computed: its heads, the dropout probability, and which projections are folded."""

    heads: int
    dropout: float
    fold: Fold
    zeros: bool  # the last token of a memory stands for all its zero tokens


def cheapest_fold(queries: int, tokens: int, width: int, heads: int) -> Fold:
    """The form of least work for Q queries of memories of S tokens; multiplications per memory and layer over 2 D."""
    work: dict[Fold, int] = {
        "nothing": tokens * width + queries * (width + tokens),
        "into_memory": 2 * tokens * width + queries * heads * tokens,
        "into_queries": queries * (2 * width + heads * tokens),
    }
    return min(work, key=lambda fold: work[fold])


def hoist(queries: Tensor, weights: DecoderWeights, form: Form) -> tuple[Tensor, Tensor]:
    """What depends on the query alone: x (Q, D) before the first layer, and that layer's attention query."""
    start = F.layer_norm(queries, queries.shape[-1:], weights.norm, weights.norm_bias)
    return start, _attention_query(start, weights.layers[0], form)


def _attention_query(x: Tensor, layer: LayerWeights, form: Form) -> Tensor:
    """The query (..., Q, D) of x: normed alone where the memory holds the projection, else projected.

    Where it holds the key projection too it is (..., H, Q, D). The key's bias moves all logits of a query alike,
    which softmax does not see: that form leaves it out.
    """
    query = F.layer_norm(x, x.shape[-1:], layer.attention_norm, layer.attention_norm_bias)
    if form.fold == "into_memory":
        return query
    query = F.linear(query, layer.query, layer.query_bias)
    if form.fold == "nothing":
        return query
    key = layer.key.unflatten(0, (form.heads, -1))
    return torch.einsum("...qhe,hed->...hqd", query.unflatten(-1, (form.heads, -1)), key)


def score_tile(
    memory: Tensor,
    start: Tensor,
    first: Tensor,
    counts: Tensor | None,
    weights: DecoderWeights,
    form: Form,
    seen: list[Tensor] | None = None,
) -> Tensor:
    """Scores (m, Q) of a tile; the head-averaged attention (m, Q, S) of each layer is added to ``seen``."""
    width, p = start.shape[-1:], form.dropout
    memory = F.layer_norm(memory, width, weights.norm, weights.norm_bias)
    x = start.expand(len(memory), -1, -1)
    for index, layer in enumerate(weights.layers):
        query = first.expand(len(memory), *first.shape) if index == 0 else _attention_query(x, layer, form)
        x = x + dropout(_ATTEND[form.fold](query, memory, layer, counts, form, seen), p)
        hidden = F.layer_norm(x, width, layer.feedforward_norm, layer.feedforward_norm_bias)
        hidden = dropout(F.relu(F.linear(hidden, layer.expand, layer.expand_bias)), p)
        x = x + dropout(F.linear(hidden, layer.contract, layer.contract_bias), p)
    x = F.layer_norm(x, width, weights.norm, weights.norm_bias)
    for index, (weight, bias) in enumerate(weights.head):
        x = F.linear(dropout(F.relu(x) if index else x, p), weight, bias)
    return x.squeeze(-1)


def _attend_plain(
    query: Tensor,
    memory: Tensor,
    layer: LayerWeights,
    counts: Tensor | None,
    form: Form,
    seen: list[Tensor] | None,
) -> Tensor:
    """Multi-head attention (m, Q, D) of projected queries; fused unless its weights are asked for or dropped."""

    def split(rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape[:-1], form.heads, -1).transpose(1, 2)

    key = split(F.linear(memory, layer.key, layer.key_bias))
    value = split(F.linear(memory, layer.value, layer.value_bias))
    bias = None if counts is None else counts.log()[:, None, None]
    if seen is None and not (form.dropout and form.zeros):
        attended = F.scaled_dot_product_attention(split(query), key, value, bias, form.dropout)
    else:
        logits = split(query) @ key.transpose(-1, -2) * key.shape[-1] ** -0.5
        attention = (logits if bias is None else logits + bias).softmax(dim=-1)
        if seen is not None:
            seen.append(attention.mean(dim=1))
        attended = _drop(attention, counts, form) @ value
    return F.linear(attended.transpose(1, 2).flatten(2), layer.output, layer.output_bias)


def _attend_memory(
    query: Tensor,
    memory: Tensor,
    layer: LayerWeights,
    counts: Tensor | None,
    form: Form,
    seen: list[Tensor] | None,
) -> Tensor:
    """The same from normed, unprojected queries: keys and values (m, H S, D) carry the projections of each head."""
    tokens = memory.shape[1]
    key = F.linear(memory, layer.key, layer.key_bias).unflatten(-1, (form.heads, -1))
    value = F.linear(memory, layer.value, layer.value_bias).unflatten(-1, (form.heads, -1))
    scale = key.shape[-1] ** -0.5
    folded_key = torch.einsum("mshe,hed->mhsd", key, layer.query.unflatten(0, (form.heads, -1)) * scale)
    folded_value = torch.einsum("mshe,dhe->mhsd", value, layer.output.unflatten(1, (form.heads, -1)))
    bias = torch.einsum("mshe,he->mhs", key, layer.query_bias.unflatten(0, (form.heads, -1)) * scale)
    if counts is not None:
        bias = bias + counts.log().unsqueeze(1)
    logits = torch.baddbmm(bias.flatten(1).unsqueeze(1), query, folded_key.flatten(1, 2).transpose(1, 2))
    attention = logits.unflatten(-1, (form.heads, tokens)).softmax(dim=-1)
    if seen is not None:
        seen.append(attention.mean(dim=2))
    attended = _drop(attention, counts, form).flatten(2) @ folded_value.flatten(1, 2)
    return attended + layer.output_bias


def _attend_queries(
    query: Tensor,
    memory: Tensor,
    layer: LayerWeights,
    counts: Tensor | None,
    form: Form,
    seen: list[Tensor] | None,
) -> Tensor:
    """The same from queries (m, H, Q, D) that carry the key projection: the memory is its own keys and values."""
    heads = (form.heads, -1)
    logits = (query.flatten(1, 2) @ memory.transpose(1, 2)).unflatten(1, heads)
    logits = logits * (memory.shape[-1] // form.heads) ** -0.5
    attention = (logits if counts is None else logits + counts.log()[:, None, None]).softmax(dim=-1)
    if seen is not None:
        seen.append(attention.mean(dim=1))
    attention = _drop(attention, counts, form)
    context = (attention.flatten(1, 2) @ memory).unflatten(1, heads)
    attended = torch.einsum("mhqd,hed->mqhe", context, layer.value.unflatten(0, heads))
    # With dropout the weights of a query no longer sum to one.
    share = attention.sum(dim=-1).transpose(1, 2).unsqueeze(-1)
    attended = attended + share * layer.value_bias.unflatten(0, heads)
    return F.linear(attended.flatten(2), layer.output, layer.output_bias)


_ATTEND = {"nothing": _attend_plain, "into_memory": _attend_memory, "into_queries": _attend_queries}


def _drop(attention: Tensor, counts: Tensor | None, form: Form) -> Tensor:
    """Dropout of attention weights (m, ..., S); the last key, where it stands for c zero tokens, keeps Binomial / c."""
    if not (form.dropout and form.zeros):
        return dropout(attention, form.dropout)
    assert counts is not None
    keep = 1.0 - form.dropout
    zero = attention[..., -1:]
    count = counts[:, None, None, -1:].expand_as(zero)
    kept = torch.binomial(count, torch.full_like(count, keep)) / (count.clamp(min=1.0) * keep)
    return torch.cat([dropout(attention[..., :-1], form.dropout), zero * kept], dim=-1)


def dropout(x: Tensor, p: float) -> Tensor:
    """Dropout of probability ``p``, on a CPU to the next 65,536th, which the scale of what is kept agrees with.

    There torch draws a whole double for each element, one after the other, which took a fifth of a decoder's time;
    16 bits do.
    """
    if x.device.type != "cpu" or not _LEVELS > round((1.0 - p) * _LEVELS) > 0:
        return F.dropout(x, p)
    kept = round((1.0 - p) * _LEVELS)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    keep = draws.view(torch.int16)[: x.numel()].view(x.shape) < kept - _LEVELS // 2
    return x * keep.to(x.dtype).mul_(_LEVELS / kept)
