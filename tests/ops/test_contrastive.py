"""The contrastive losses against their sums written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rayzero.ops import info_nce, multi_positive_nce, sigmoid_nce
from tests.processes import in_processes

LOSSES: list[Callable[..., torch.Tensor]] = [multi_positive_nce, info_nce, sigmoid_nce]


def problem(images: int, texts: int, seed: int, share: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits that require a gradient, and positives of which there is at least one."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, texts, dtype=torch.float64, generator=generator) * 4
    positives = torch.rand(images, texts, generator=generator) < share
    positives[0, 0] = True
    return logits.requires_grad_(), positives


def written_out(logits: torch.Tensor, positives: torch.Tensor) -> float:
    """Every pair's two terms in plain exponentials."""
    total, pairs = 0.0, 0
    images, texts = logits.shape
    for b in range(images):
        for t in range(texts):
            if not positives[b, t]:
                continue
            p = math.exp(logits[b, t])
            of_text = sum(math.exp(logits[j, t]) for j in range(images) if not positives[j, t])
            of_image = sum(math.exp(logits[b, k]) for k in range(texts) if not positives[b, k])
            total += (-math.log(p / (p + of_text)) - math.log(p / (p + of_image))) / 2
            pairs += 1
    return total / pairs


def test_equals_the_sums_written_out() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        images, texts = torch.randint(1, 6, (2,)).tolist()
        logits = torch.randn(images, texts, dtype=torch.float64) * 4
        positives = torch.rand(images, texts) < 0.4
        positives[0, 0] = True
        assert float(multi_positive_nce(logits, positives)) == pytest.approx(written_out(logits, positives), abs=1e-12)


def test_one_image_per_text_is_info_nce_and_mp_nce() -> None:
    torch.manual_seed(1)
    logits = torch.randn(4, 9, dtype=torch.float64) * 3
    image_of = torch.arange(9) % 4
    positives = image_of == torch.arange(4)[:, None]
    z, p = logits.T, logits.T[torch.arange(9), image_of]
    row = (z.logsumexp(dim=1) - p).mean()
    negatives = torch.stack([z[image_of != j, j].exp().sum() for j in range(4)])
    column = (torch.log(p.exp() + negatives[image_of]) - p).mean()
    torch.testing.assert_close(multi_positive_nce(logits, positives), (row + column) / 2, rtol=0, atol=1e-12)


def test_balanced_is_the_mean_over_texts_of_each_text_alone() -> None:
    torch.manual_seed(4)
    logits = torch.randn(5, 4, dtype=torch.float64)
    positives = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    floor = torch.finfo(torch.float64).min / 2
    negatives = logits.masked_fill(positives, floor)
    of_text, of_image = negatives.logsumexp(0, keepdim=True), negatives.logsumexp(1, keepdim=True)
    terms = (torch.logaddexp(logits, of_text) + torch.logaddexp(logits, of_image)) / 2 - logits
    # The fourth text is positive for no image: it is a negative alone and has no term of its own.
    expected = torch.stack([terms[positives[:, t], t].mean() for t in range(3)]).mean()
    balanced = multi_positive_nce(logits, positives, balanced=True)
    torch.testing.assert_close(balanced, expected, rtol=0, atol=1e-12)


@settings(max_examples=40)
@given(images=st.integers(1, 6), texts=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_info_nce_is_cross_entropy_against_the_mean_over_positives(images: int, texts: int, seed: int) -> None:
    logits, positives = problem(images, texts, seed)

    def direction(z: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        rows = [-z[i].log_softmax(dim=0)[said[i]].mean() for i in range(len(z)) if said[i].any()]
        return torch.stack(rows).mean()

    both = direction(logits, positives) + direction(logits.T, positives.T)
    for ours, theirs in (
        (info_nce(logits, positives), both / 2),
        (info_nce(logits, positives, directions="sum"), both),
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        got, expected = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_info_nce_of_single_positives_is_clip_s_loss() -> None:
    logits, _ = problem(7, 7, 3)
    target = torch.arange(7)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(info_nce(logits, torch.eye(7, dtype=torch.bool)), expected, rtol=0, atol=1e-12)


@settings(max_examples=40)
@given(images=st.integers(1, 6), texts=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_sigmoid_nce_is_a_binary_loss_per_pair(images: int, texts: int, seed: int) -> None:
    logits, positives = problem(images, texts, seed)
    pairs = F.binary_cross_entropy_with_logits(logits, positives.double(), reduction="sum")
    torch.testing.assert_close(sigmoid_nce(logits, positives), pairs / positives.sum(), rtol=0, atol=1e-12)


def test_the_sum_of_directions_is_twice_their_mean() -> None:
    logits, positives = problem(4, 5, 0)
    total = multi_positive_nce(logits, positives, directions="sum")
    torch.testing.assert_close(total, 2 * multi_positive_nce(logits, positives))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_exact(loss: Callable[..., torch.Tensor]) -> None:
    logits, positives = problem(3, 5, 2)
    assert torch.autograd.gradcheck(lambda z: loss(z, positives), (logits,))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_extreme_logits_give_finite_losses_and_gradients(loss: Callable[..., torch.Tensor], size: float) -> None:
    logits = (size * torch.tensor([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.5]])).requires_grad_()
    value = loss(logits, torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.bool))
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_logits_are_summed_in_float32(loss: Callable[..., torch.Tensor]) -> None:
    logits, positives = problem(6, 9, 1)
    rounded = logits.detach().bfloat16()
    value = loss(rounded, positives)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(rounded.double(), positives), rtol=1e-6, atol=0)


def of_one_process(rank: int, folder: str) -> None:
    world = dist.get_world_size()
    images = slice(0, 1) if rank == 0 else slice(1, 5)  # unequal shares, and the first holds no positive of its own
    found = {}
    for loss in LOSSES:
        logits, positives = problem(5, 6, 8)
        positives[0], positives[1, 0] = False, True
        share = logits[images].detach().requires_grad_()
        value = loss(share, positives[images])
        # Every process calls backward on its value; engines average over processes what this yields.
        found[loss.__name__] = {"value": value.detach(), "grad": torch.autograd.grad(value, share)[0] / world}
        share = share.detach().clone()
        if rank == 0:
            share[0, 0] = torch.nan
        with pytest.raises(ValueError, match="1 logits are not finite"):  # on every process, or the others would hang
            loss(share, positives[images])
    torch.save(found, f"{folder}/rank{rank}.pt")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    in_processes(2, of_one_process, str(tmp_path))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for loss in LOSSES:
        logits, positives = problem(5, 6, 8)
        positives[0], positives[1, 0] = False, True
        value = loss(logits, positives)
        shares = [rank[loss.__name__] for rank in ranks]
        for share in shares:
            torch.testing.assert_close(share["value"], value.detach(), rtol=0, atol=1e-12)
        expected = torch.autograd.grad(value, logits)[0]
        torch.testing.assert_close(torch.cat([share["grad"] for share in shares]), expected, rtol=0, atol=1e-12)


def test_the_hardest_pairs_keep_their_loss_and_gradient() -> None:
    # cos = -1 for the positive and +1 for the negative at tau 0.07: the published code stops at 18.42.
    logits = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 0.07
    logits.requires_grad_()
    loss = multi_positive_nce(logits, torch.eye(2, dtype=torch.bool))
    assert loss.item() == pytest.approx(2 / 0.07, abs=1e-3)
    assert torch.autograd.grad(loss, logits)[0].abs().min() > 0.1


def test_no_negatives_is_zero_loss_not_nan() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = multi_positive_nce(logits, torch.ones(1, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad) == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_masks_are_refused(loss: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="nothing to align"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="nothing to align"):
        loss(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool))
    with pytest.raises(ValueError, match="boolean"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"must both be \(B, T\)"):
        loss(torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_refused(loss: Callable[..., torch.Tensor], bad: float) -> None:
    logits = torch.zeros(2, 3)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match="1 logits are not finite"):
        loss(logits, torch.ones(2, 3, dtype=torch.bool))
