"""CARZero's decoder at its paper's size: all pairs of 64 images and 64 sentences, both directions, with dropout."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from rayzero.ops.pairwise_attention import pairwise_attention, pairwise_attention_reference
from rayzero.ops.pairwise_decoder import DecoderWeights, LayerWeights
from tests.benchmarks.alignment.case import Case
from tests.benchmarks.harness import Problem

_PAIRS, _WIDTH, _HIDDEN, _LAYERS, _HEADS, _HEAD = 64, 768, 1024, 4, 4, (1024, 512, 256)
# Tokens: a CLS and 14 x 14 patches; a sentence vector and 97 word slots, about 15 of them filled.
_PATCHES, _SLOTS, _DROPOUT = 197, 97, 0.1


def build(device: torch.device) -> Problem:
    """The published memory: all 97 word slots, empty ones as zeros."""
    torch.manual_seed(0)
    words = torch.randint(8, 24, (_PAIRS,), device=device)
    image = torch.randn(_PAIRS, _PATCHES, _WIDTH, device=device)
    text = torch.randn(_PAIRS, 1 + _SLOTS, _WIDTH, device=device)
    text[torch.arange(1 + _SLOTS, device=device) > words.unsqueeze(1)] = 0.0
    image.requires_grad_(), text.requires_grad_()
    longest = 1 + int(words.max())
    mask = torch.arange(longest, device=device) <= words.unsqueeze(1)
    weights = _weights(device)

    def ours() -> Tensor:
        to_text = pairwise_attention(image, text[:, 0], weights, _HEADS, dropout=_DROPOUT)
        to_image = pairwise_attention(
            text[:, :longest], image[:, 0], weights, _HEADS, mask=mask, zeros=_SLOTS - words, dropout=_DROPOUT
        )
        return to_text + to_image.T

    def published() -> Tensor:
        to_text, _ = pairwise_attention_reference(image, text[:, 0], weights, _HEADS, dropout=_DROPOUT)
        to_image, _ = pairwise_attention_reference(text, image[:, 0], weights, _HEADS, dropout=_DROPOUT)
        return to_text + to_image.T

    return Problem(ours, published, (image, text, *weights.flat()))


def _weights(device: torch.device) -> DecoderWeights:
    def linear(out: int, into: int) -> tuple[Tensor, Tensor]:
        weight = 0.02 * torch.randn(out, into, device=device)
        return weight.requires_grad_(), torch.zeros(out, device=device, requires_grad=True)

    def norm() -> tuple[Tensor, Tensor]:
        return torch.ones(_WIDTH, device=device, requires_grad=True), linear(_WIDTH, 1)[1]

    def layer() -> LayerWeights:
        attention = [one for _ in range(4) for one in linear(_WIDTH, _WIDTH)]
        return LayerWeights(*norm(), *attention, *norm(), *linear(_HIDDEN, _WIDTH), *linear(_WIDTH, _HIDDEN))

    sizes = (_WIDTH, *_HEAD, 1)
    head = tuple(linear(after, before) for before, after in pairwise(sizes))
    return DecoderWeights(*norm(), tuple(layer() for _ in range(_LAYERS)), head)


CASES = [Case("carzero_pairs", build, saved=1 / 50, peak=1 / 5, seconds=1.1)]
