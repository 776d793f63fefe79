"""matching_loss against cross-entropy written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rayzero.ops import matching_loss


def test_one_text_per_image_is_the_symmetric_cross_entropy() -> None:
    logits = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own = torch.arange(5)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(matching_loss(logits, torch.eye(5, dtype=torch.bool)), expected, rtol=0, atol=1e-12)


def test_a_shared_text_is_a_target_of_each_of_its_images() -> None:
    logits = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    positives = torch.tensor([[1, 0], [0, 1], [1, 0]], dtype=torch.bool)
    of_images = F.cross_entropy(logits, torch.tensor([0, 1, 0]))
    targets = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
    expected = (of_images + F.cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(matching_loss(logits, positives), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda z: matching_loss(z, positives), (logits,))


def test_images_or_texts_without_a_partner_are_refused() -> None:
    logits = torch.zeros(2, 2)
    for positives in ([[1, 0], [0, 0]], [[1, 0], [1, 0]]):
        with pytest.raises(ValueError, match="every image needs a text"):
            matching_loss(logits, torch.tensor(positives, dtype=torch.bool))
    with pytest.raises(ValueError, match="nothing to align"):
        matching_loss(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool))
    with pytest.raises(ValueError, match="boolean"):
        matching_loss(logits, torch.eye(2))
