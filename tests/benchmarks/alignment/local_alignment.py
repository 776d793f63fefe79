"""ALTA's local loss at the published global batch: 96 images of 196 patches, 96 captions of up to 127 words."""

from __future__ import annotations

import torch

from rayzero.ops.local_alignment import local_alignment, local_alignment_reference
from tests.benchmarks.alignment.case import Case
from tests.benchmarks.harness import Problem

_PAIRS, _PATCHES, _WORDS, _WIDTH = 96, 196, 127, 128


def build(device: torch.device) -> Problem:
    """Captions of 25 words to as many as fit, the multipliers at their initial 1 / 0.07."""
    torch.manual_seed(0)
    lengths = torch.randint(25, _WORDS + 1, (_PAIRS,), device=device)
    mask = torch.arange(_WORDS, device=device) < lengths[:, None]
    # Of the scale that the projection heads give: similarities of a few units.
    patches, words = (
        (0.3 * torch.randn(_PAIRS, count, _WIDTH, device=device)).requires_grad_() for count in (_PATCHES, _WORDS)
    )
    multipliers = [torch.full((1,), 1 / 0.07, device=device, requires_grad=True) for _ in range(3)]
    return Problem(
        ours=lambda: local_alignment(patches, words, mask, *multipliers),
        other=lambda: local_alignment_reference(patches, words, mask, *multipliers),
        inputs=(patches, words, *multipliers),
    )


CASES = [Case("local_alignment", build, peak=1 / 10, seconds=0.8)]
