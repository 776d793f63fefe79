"""One tile of CARZero's pairwise decoder, and its weights: what ``pairwise_attention`` runs tile by tile.

Attention comes in two exact forms: fused over projected queries, or with the query and output projections of each
head folded into the keys and values, which is less work when a memory is short and its queries are many (CARZero
spec, section 9, reduction 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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


@dataclass(frozen=True)
class Form:
    """How a decoder is computed: the heads, the dropout probability, and which exact reductions hold."""

    heads: int
    dropout: float
    folded: bool  # query and output projections are folded into keys and values
    zeros: bool  # the last token stands for all zero tokens


def folds(queries: int, tokens: int, width: int, heads: int) -> bool:
    """Whether folding saves multiplications: per query D + S against H S, at S D more per memory, all times 4 D."""
    return queries * (width + tokens - heads * tokens) > tokens * width


def hoist(queries: Tensor, weights: DecoderWeights, form: Form) -> tuple[Tensor, Tensor]:
    """What depends on the query alone: x (Q, D) before the first layer, and that layer's attention query (Q, D)."""
    start = F.layer_norm(queries, queries.shape[-1:], weights.norm, weights.norm_bias)
    return start, _attention_query(start, weights.layers[0], form)


def _attention_query(x: Tensor, layer: LayerWeights, form: Form) -> Tensor:
    query = F.layer_norm(x, x.shape[-1:], layer.attention_norm, layer.attention_norm_bias)
    return query if form.folded else F.linear(query, layer.query, layer.query_bias)


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
        query = first.expand(len(memory), -1, -1) if index == 0 else _attention_query(x, layer, form)
        attend = _attend_folded if form.folded else _attend
        x = x + F.dropout(attend(query, memory, layer, counts, form, seen), p)
        hidden = F.layer_norm(x, width, layer.feedforward_norm, layer.feedforward_norm_bias)
        hidden = F.dropout(F.relu(F.linear(hidden, layer.expand, layer.expand_bias)), p)
        x = x + F.dropout(F.linear(hidden, layer.contract, layer.contract_bias), p)
    x = F.layer_norm(x, width, weights.norm, weights.norm_bias)
    for index, (weight, bias) in enumerate(weights.head):
        x = F.linear(F.dropout(F.relu(x) if index else x, p), weight, bias)
    return x.squeeze(-1)


def _attend(
    query: Tensor,
    memory: Tensor,
    layer: LayerWeights,
    counts: Tensor | None,
    form: Form,
    seen: list[Tensor] | None,
) -> Tensor:
    """Multi-head attention (m, Q, D) of projected queries; fused unless its weights are asked for or dropped."""

    def split(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (form.heads, -1)).transpose(1, 2)

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


def _attend_folded(
    query: Tensor,
    memory: Tensor,
    layer: LayerWeights,
    counts: Tensor | None,
    form: Form,
    seen: list[Tensor] | None,
) -> Tensor:
    """``_attend`` for normed, unprojected queries: keys and values (m, H S, D) carry the projections of each head."""
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
    attended = _drop(attention, counts, form).flatten(2) @ folded_value.flatten(1, 2)
    return attended + layer.output_bias


def _drop(attention: Tensor, counts: Tensor | None, form: Form) -> Tensor:
    """Dropout of attention weights (m, ..., S); the last key, where it stands for c zero tokens, keeps Binomial / c."""
    if not (form.dropout and form.zeros):
        return F.dropout(attention, form.dropout)
    assert counts is not None
    keep = 1.0 - form.dropout
    zero = attention[..., -1:]
    count = counts[:, None, None, -1:].expand_as(zero)
    kept = torch.binomial(count, torch.full_like(count, keep)) / (count.clamp(min=1.0) * keep)
    return torch.cat([F.dropout(attention[..., :-1], form.dropout), zero * kept], dim=-1)
