"""multi_positive_nce against the sums of RadZero spec section 5, written out."""

from __future__ import annotations

import math

import pytest
import torch

from rayzero.ops import multi_positive_nce


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


def test_gradients_are_exact() -> None:
    torch.manual_seed(2)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    positives = torch.rand(3, 5) < 0.5
    positives[0, 0] = True
    assert torch.autograd.gradcheck(lambda z: multi_positive_nce(z, positives), (logits,))


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


def test_bad_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to align"):
        multi_positive_nce(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="boolean"):
        multi_positive_nce(torch.zeros(2, 3), torch.zeros(2, 3))
