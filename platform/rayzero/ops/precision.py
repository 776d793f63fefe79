"""Products in the precision of their factors: cosines that are divided by 0.07 are too coarse in half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(rows: Tensor) -> Tensor:
    """``rows``, of half precision in float32."""
    return rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows


def as_given(like: Tensor) -> torch.autocast:
    """A region without autocast on the device of ``like``: autocast rounds the factors of a product, float32 or not."""
    return torch.autocast(like.device.type, enabled=False)
