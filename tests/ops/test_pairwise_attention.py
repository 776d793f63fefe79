"""pairwise_attention against CARZero's formula, forward and gradients, in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayzero.ops import pairwise_attention as op
from rayzero.ops.pairwise_attention import (
    pairwise_attention,
    pairwise_attention_maps,
    pairwise_attention_reference,
)
from rayzero.ops.pairwise_decoder import DecoderWeights, Fold, LayerWeights, cheapest_fold, dropout

HEADS = 2
FOLDS: tuple[Fold, ...] = get_args(Fold)


def rows(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def decoder(width: int, hidden: int, layers: int, head: tuple[int, ...], seed: int) -> DecoderWeights:
    """Weights, norms and biases, all drawn, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
        return (scale * torch.randn(*shape, dtype=torch.float64, generator=generator)).requires_grad_()

    def layer() -> LayerWeights:
        square = [one for _ in range(4) for one in (draw(width, width), draw(width))]
        feedforward = draw(hidden, width), draw(hidden), draw(width, hidden), draw(width)
        return LayerWeights(draw(width), draw(width), *square, draw(width), draw(width), *feedforward)

    sizes = (width, *head, 1)
    parts = tuple((draw(after, before), draw(after)) for before, after in pairwise(sizes))
    return DecoderWeights(draw(width), draw(width), tuple(layer() for _ in range(layers)), parts)


def expanded(memory: torch.Tensor, mask: torch.Tensor, zeros: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The memory with its zero tokens spelled out, and the mask of what is there."""
    slots = torch.arange(int(zeros.max())) < zeros.unsqueeze(1)
    return torch.cat([memory, memory.new_zeros(*slots.shape, memory.shape[2])], dim=1), torch.cat([mask, slots], dim=1)


@settings(max_examples=40)
@given(
    memories=st.integers(1, 5),
    queries=st.integers(1, 12),
    lengths=st.lists(st.integers(1, 7), min_size=5, max_size=5),
    slots=st.one_of(st.none(), st.integers(7, 97)),
    layers=st.integers(1, 3),
    head=st.sampled_from([(), (5,), (6, 4)]),
    fold=st.sampled_from(FOLDS),
    tile=st.sampled_from([1, 2000, 1 << 25]),
    seed=st.integers(0, 10_000),
)
def test_equals_the_published_formula(
    memories: int,
    queries: int,
    lengths: list[int],
    slots: int | None,
    layers: int,
    head: tuple[int, ...],
    fold: Fold,
    tile: int,
    seed: int,
) -> None:
    """Ragged words, masked (no slots) or filled up with zeros to a fixed number of slots; any form; any tiles."""
    length = torch.tensor(lengths[:memories])
    mask = torch.arange(int(length.max())) < length.unsqueeze(1)
    zeros = None if slots is None else slots - length
    memory, query = rows(memories, int(length.max()), 8, seed=seed), rows(queries, 8, seed=seed + 1)
    weights = decoder(8, 6, layers, head, seed + 2)
    upstream = rows(memories, queries, seed=seed + 3).detach()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "cheapest_fold", lambda *_: fold)
        patch.setattr(op, "_TILE_ELEMENTS", tile)
        ours = pairwise_attention(memory, query, weights, HEADS, mask=mask, zeros=zeros)
        inputs = [memory, query, *weights.flat()]
        mine = torch.autograd.grad((ours * upstream).sum(), inputs)
    plain, there = (memory, mask) if zeros is None else expanded(memory, mask, zeros)
    theirs, _ = pairwise_attention_reference(plain, query, weights, HEADS, mask=there)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for got, expected in zip(mine, torch.autograd.grad((theirs * upstream).sum(), inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("zeros", [None, torch.tensor([3, 0])])
def test_the_backward_pass_drops_what_the_forward_pass_dropped(
    fold: Fold, zeros: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "cheapest_fold", lambda *_: fold)
    monkeypatch.setattr(op, "_TILE_ELEMENTS", 1)
    memory, query, weights = rows(2, 3, 4, seed=0), rows(2, 4, seed=1), decoder(4, 3, 2, (3,), 2)

    def scores(memory: torch.Tensor, query: torch.Tensor, *flat: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return pairwise_attention(memory, query, weights.like(list(flat)), HEADS, zeros=zeros, dropout=0.4)

    assert torch.autograd.gradcheck(scores, (memory, query, *weights.flat()), fast_mode=True)


def test_the_backward_pass_leaves_the_generator_alone() -> None:
    memory, query, weights = rows(2, 3, 4, seed=0), rows(2, 4, seed=1), decoder(4, 3, 1, (), 2)
    scores = pairwise_attention(memory, query, weights, HEADS, dropout=0.4)
    state = torch.get_rng_state()
    scores.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.9, 1.0])
def test_dropout_keeps_its_share_and_the_mean(p: float) -> None:
    x = torch.ones(3, 100_003, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    y = dropout(x, p)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p), y)
    kept = y != 0
    assert float(kept.double().mean()) == pytest.approx(1 - p, abs=5 * 0.5 / x.numel() ** 0.5)
    if p < 1:
        torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)), rtol=1e-3, atol=0)
        # Neighbours are drawn from one number, and independently.
        pairs = kept[:, 1:] & kept[:, :-1]
        assert float(pairs.double().mean()) == pytest.approx((1 - p) ** 2, abs=0.005)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("fold", FOLDS)
def test_dropout_of_collapsed_zeros_has_the_distribution_of_the_expanded_ones(
    fold: Fold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean and variance over draws, against the formula on 20 spelled-out zero tokens."""
    monkeypatch.setattr(op, "cheapest_fold", lambda *_: fold)
    weights = decoder(4, 3, 1, (), 5)
    memory, query, zeros = rows(1, 2, 4, seed=3).detach(), rows(1, 4, seed=4).detach(), torch.tensor([20])
    many = 20_000
    plain, _ = expanded(memory, torch.ones(1, 2, dtype=torch.bool), zeros)
    torch.manual_seed(0)
    with torch.no_grad():
        ours = pairwise_attention(
            memory.expand(many, -1, -1), query, weights, HEADS, zeros=zeros.expand(many), dropout=0.3
        )
        theirs, _ = pairwise_attention_reference(plain.expand(many, -1, -1), query, weights, HEADS, dropout=0.3)
    assert abs(float(ours.mean() - theirs.mean())) < 4 * float(theirs.std()) * (2 / many) ** 0.5
    assert 0.95 < float(ours.std() / theirs.std()) < 1.05


@pytest.mark.parametrize("fold", FOLDS)
def test_maps_are_the_mean_attention_of_heads_and_layers(fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "cheapest_fold", lambda *_: fold)
    memory, query, weights = rows(3, 5, 8, seed=0), rows(4, 8, seed=1), decoder(8, 6, 3, (5,), 2)
    _, expected = pairwise_attention_reference(memory, query, weights, HEADS)
    maps = pairwise_attention_maps(memory, query, weights, HEADS)
    assert not maps.requires_grad
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(3, 4, dtype=torch.float64))
    monkeypatch.setattr(op, "_TILE_ELEMENTS", 1)
    torch.testing.assert_close(pairwise_attention_maps(memory, query, weights, HEADS), expected, rtol=0, atol=1e-12)


def test_each_form_is_taken_where_it_is_the_least_work() -> None:
    """At the paper's size: 64 or 256 images, or 14 prompts, against patches; and short texts."""
    assert cheapest_fold(256, 197, 768, 4) == "nothing"
    assert cheapest_fold(64, 197, 768, 4) == "into_queries"
    assert cheapest_fold(14, 197, 768, 4) == "into_queries"
    assert cheapest_fold(64, 18, 768, 4) == "into_memory"
    assert cheapest_fold(2000, 197, 768, 4) == "into_memory"


def test_no_tensor_of_pairs_is_saved() -> None:
    memory, query, weights = rows(20, 5, 8, seed=0), rows(30, 8, seed=1), decoder(8, 6, 2, (5,), 2)
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):  # type: ignore[func-returns-value]
        pairwise_attention(memory, query, weights, HEADS)
    assert saved
    assert not [shape for shape in saved if shape[:2] in ((20, 30), (30, 20))]


def test_frozen_weights_get_no_gradient() -> None:
    memory, query, weights = rows(2, 3, 4, seed=0), rows(2, 4, seed=1), decoder(4, 3, 1, (), 2)
    frozen = weights.like([one.detach() for one in weights.flat()])
    pairwise_attention(memory, query, frozen, HEADS).sum().backward()
    assert memory.grad is not None
    assert query.grad is not None
    assert all(one.grad is None for one in weights.flat())


def test_half_precision_comes_from_autocast_in_both_passes() -> None:
    memory, query = rows(2, 3, 8, seed=0).detach().float(), rows(4, 8, seed=1).detach().float()
    weights = decoder(8, 6, 2, (5,), 2)
    single = weights.like([one.detach().float().requires_grad_() for one in weights.flat()])
    with torch.autocast("cpu", torch.bfloat16):
        scores = pairwise_attention(memory, query, single, HEADS)
    scores.sum().backward()
    exact, _ = pairwise_attention_reference(memory, query, single, HEADS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, rtol=0.1, atol=0.1)
    assert single.norm.grad is not None
    assert single.norm.grad.dtype == torch.float32


def test_no_memory_gives_no_scores_and_zero_gradients() -> None:
    """A process may own none of the distinct texts of a step."""
    memory, query, weights = rows(0, 3, 4, seed=0), rows(2, 4, seed=1), decoder(4, 3, 1, (), 2)
    scores = pairwise_attention(memory, query, weights, HEADS)
    assert scores.shape == (0, 2)
    scores.sum().backward()
    assert weights.norm.grad is not None
    assert not bool(weights.norm.grad.any())


@pytest.mark.parametrize(
    ("memory", "queries", "options", "message"),
    [
        ((2, 3, 5), (2, 4), {}, r"must be \(M, S, D\) and \(Q, D\), D = 4"),
        ((2, 4), (2, 4), {}, r"must be \(M, S, D\) and \(Q, D\)"),
        ((2, 0, 4), (2, 4), {}, "at least one token"),
        ((2, 3, 4), (2, 4), {"heads": 3}, "not a multiple of heads 3"),
        ((2, 3, 4), (2, 4), {"mask": torch.zeros(2, 3, dtype=torch.bool)}, "true entry in every row"),
        ((2, 3, 4), (2, 4), {"mask": torch.ones(2, 2, dtype=torch.bool)}, r"\(M, S\) = \(2, 3\)"),
        ((2, 3, 4), (2, 4), {"zeros": torch.tensor([1])}, r"zeros must be \(M,\) = \(2,\)"),
        ((2, 3, 4), (2, 4), {"zeros": torch.tensor([1, -1])}, "none negative"),
    ],
)
def test_what_does_not_fit_is_refused(
    memory: tuple[int, ...], queries: tuple[int, ...], options: dict[str, torch.Tensor], message: str
) -> None:
    weights = decoder(4, 3, 1, (), 0)
    with pytest.raises(ValueError, match=message):
        pairwise_attention(rows(*memory, seed=0), rows(*queries, seed=1), weights, **{"heads": HEADS, **options})  # type: ignore[arg-type]
