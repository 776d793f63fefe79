"""Attention rollout by vectors equals the product of matrices, built from one graph over all layers."""

from __future__ import annotations

import pytest
import torch

from rayzero.encoders.transformer import Transformer
from rayzero.ops.rollout import gradient_rollout


def by_matrices(stack: Transformer, tokens: torch.Tensor, readout: torch.Tensor) -> torch.Tensor:
    """Row CLS of M_L ... M_1, every M_l a matrix, every gradient from one backward pass."""
    attentions = []
    x = tokens.clone().requires_grad_()
    for block in stack.blocks:
        x, attention = block.attend(x)
        attentions.append(attention)
    slopes = torch.autograd.grad((stack.norm(x[:, 0]) @ readout).sum(), attentions)
    product = torch.eye(tokens.shape[1], dtype=tokens.dtype).expand(len(tokens), -1, -1)
    for attention, slope in zip(attentions, slopes, strict=True):
        mixing = attention.mean(dim=1) * slope.mean(dim=1).clamp(min=0) + torch.eye(tokens.shape[1])
        product = (mixing / mixing.sum(dim=-1, keepdim=True)) @ product
    return product[:, 0].detach()


@pytest.mark.parametrize("frozen", [False, True])
def test_vectors_equal_matrices(frozen: bool) -> None:
    torch.manual_seed(0)
    stack = Transformer(12, 4, 3).double().requires_grad_(not frozen)
    tokens, readout = torch.randn(3, 9, 12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    rows = gradient_rollout(stack.blocks, tokens, lambda last: stack.norm(last[:, 0]) @ readout)
    torch.testing.assert_close(rows, by_matrices(stack, tokens, readout), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones(3, dtype=torch.float64))
    assert not rows.requires_grad
    assert all(parameter.grad is None for parameter in stack.parameters())


def test_it_works_where_gradients_are_off() -> None:
    stack = Transformer(12, 2, 2)
    with torch.no_grad():
        rows = gradient_rollout(stack.blocks, torch.randn(1, 5, 12), lambda last: last[:, 0].sum(dim=-1))
    assert rows.shape == (1, 5)
    assert bool(torch.isfinite(rows).all())


def test_what_cannot_be_rolled_out_says_so() -> None:
    with pytest.raises(ValueError, match="at least one transformer block"):
        gradient_rollout([], torch.randn(1, 5, 12), lambda last: last[:, 0, 0])
    with pytest.raises(ValueError, match=r"one scalar per image \(1,\)"):
        gradient_rollout(Transformer(12, 1, 2).blocks, torch.randn(1, 5, 12), lambda last: last[:, 0])
