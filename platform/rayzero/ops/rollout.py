"""Gradient-weighted attention rollout, exact, with one layer's attention in memory at a time.

With A_l the head mean of layer l's attention and G_l the positive part of the head mean of dS/dA_l, each layer mixes
tokens by M_l = rownorm(A_l * G_l + I), and the rollout is row CLS of M_L ... M_1 (BrgSA spec, section 7, in the order
of the layers: the published product runs the other way round). That row is ((e_CLS M_L) M_(L-1)) ... M_1, L products
of a vector and a matrix in place of L of matrices: O(L N^2) against O(L N^3). It starts at the last layer, as
backpropagation does, so each M_l is used as soon as its gradient is there: the forward pass keeps the inputs of the
layers alone, and a layer's attention lives only while its own gradient is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor


class AttentionBlock(Protocol):
    """A residual attention block over tokens (B, N, C)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Tokens to tokens."""

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same tokens, computed from the attention (B, heads, N, N), which comes second."""


def gradient_rollout(blocks: Iterable[AttentionBlock], tokens: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """How much each token (B, N) contributes to ``objective`` by way of the first one; rows sum to 1.

    Args:
        blocks: from the first layer to the last.
        tokens: (B, N, C), what the first layer takes, CLS in front.
        objective: one scalar S per image (B,) of what the last layer gives; images may not depend on each other.

    Raises:
        ValueError: there are no blocks, or the objective is not (B,).
    """
    layers: list[tuple[AttentionBlock, Tensor]] = []
    x = tokens.detach()
    with torch.no_grad():
        for block in blocks:
            layers.append((block, x))
            x = block(x)
    if not layers:
        raise ValueError("attention rollout needs at least one transformer block; this model has none")
    row = tokens.new_zeros(tokens.shape[:2])
    row[:, 0] = 1
    with torch.enable_grad():
        x.requires_grad_()
        value = objective(x)
        if value.shape != tokens.shape[:1]:
            raise ValueError(f"the objective is {tuple(value.shape)}, one scalar per image {tuple(tokens.shape[:1])}")
        (upstream,) = torch.autograd.grad(value.sum(), x)
        for block, held in reversed(layers):
            given = held.detach().requires_grad_()
            output, attention = block.attend(given)
            upstream, slope = torch.autograd.grad(output, (given, attention), upstream)
            mixing = attention.detach().mean(dim=1) * slope.mean(dim=1).clamp(min=0)
            row = row / (1 + mixing.sum(dim=-1))
            row = row + torch.einsum("bn,bnm->bm", row, mixing)
    return row
