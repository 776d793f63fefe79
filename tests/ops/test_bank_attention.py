"""knowledge_bank against softmax attention written out, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayzero.ops import knowledge_bank
from rayzero.ops.bank_attention import knowledge_bank_reference


def rows(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


@settings(max_examples=40)
@given(queries=st.integers(1, 9), entries=st.integers(1, 30), width=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_equals_softmax_attention(queries: int, entries: int, width: int, seed: int) -> None:
    query, bank = rows(queries, width, seed=seed), rows(entries, width, seed=seed + 1)
    upstream = rows(queries, width, seed=seed + 2).detach()
    ours, theirs = knowledge_bank(query, bank), knowledge_bank_reference(query, bank)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for got, expected in zip(
        torch.autograd.grad((ours * upstream).sum(), (query, bank)),
        torch.autograd.grad((theirs * upstream).sum(), (query, bank)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_gradients_match_finite_differences() -> None:
    assert torch.autograd.gradcheck(knowledge_bank, (rows(3, 4, seed=0), rows(5, 4, seed=1)))


def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    query, bank = rows(7, 4, seed=0), rows(11, 4, seed=1)
    whole = knowledge_bank(query, bank)
    expected = torch.autograd.grad(whole.square().sum(), (query, bank))
    monkeypatch.setattr("rayzero.ops.bank_attention._TILE_ELEMENTS", 22)
    tiled = knowledge_bank(query, bank)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.autograd.grad(tiled.square().sum(), (query, bank)), expected, rtol=0, atol=1e-13)


def test_saves_one_scalar_per_query() -> None:
    query, bank = rows(6, 4, seed=0), rows(50, 4, seed=1)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        knowledge_bank(query, bank)
    assert sum(saved) == query.numel() + bank.numel() + 6


def test_large_products_do_not_overflow() -> None:
    query = torch.full((1, 4), 1e3, requires_grad=True)
    bank = torch.stack([torch.ones(4), -torch.ones(4)])
    out = knowledge_bank(query, bank)
    torch.testing.assert_close(out.detach(), torch.ones(1, 4))
    assert torch.autograd.grad(out.sum(), query)[0].isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    query, bank = (part.detach().bfloat16() for part in (rows(6, 32, seed=0), rows(50, 32, seed=1)))
    out = knowledge_bank(query, bank)
    assert out.dtype == torch.bfloat16
    expected = knowledge_bank_reference(query.double(), bank.double())
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(knowledge_bank(query, bank), out, rtol=0, atol=0)
        # Its backward pass, which autocast does not reach, recomputes the attention from what this one sums.
        torch.testing.assert_close(knowledge_bank(query.float(), bank.float()).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("query", "bank"), [((3, 4), (5, 6)), ((4,), (5, 4)), ((0, 4), (5, 4)), ((3, 4), (0, 4))])
def test_shapes_that_do_not_fit_are_refused(query: tuple[int, ...], bank: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, D\) and \(K, D\), not empty"):
        knowledge_bank(torch.rand(query), torch.rand(bank))
