"""The trainable transformer blocks that systems stack on a frozen encoder, and fixed 2-D position codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayzero.encoders.vision import VisionEncoder


class Block(nn.Module):
    """A pre-norm ViT encoder block: attention and MLP of ratio 4, GELU, no dropout, LayerScale as in DINOv2.

    ``layer_scale`` None leaves LayerScale out. Weights keep PyTorch's default initialisation (RadZero spec, section 3).
    """

    def __init__(self, width: int, heads: int, layer_scale: float | None = 1.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.scale1 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.scale2 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C)."""
        x = x + self.attend(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))

    def attend(self, x: Tensor) -> Tensor:
        """What attention adds to the tokens, from the normalised ``x`` (B, N, C)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, tokens, width)
        added: Tensor = self.project(attended)
        return added if self.scale1 is None else self.scale1 * added

    def feed_forward(self, x: Tensor) -> Tensor:
        """What the MLP adds to the tokens, from the normalised ``x`` (B, N, C)."""
        added: Tensor = self.contract(F.gelu(self.expand(x)))
        return added if self.scale2 is None else self.scale2 * added


class Adapter(nn.Module):
    """Brings a vision encoder's tokens to another width: LayerNorm, one linear map, and 2-D position codes.

    The codes start at a tenth of the tokens' scale, so that they tell places apart without drowning content.
    """

    def __init__(self, vision: VisionEncoder, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(vision.width)
        self.linear = nn.Linear(vision.width, width)
        codes = sincos_positions(vision.grid, width)
        self.register_buffer("codes", F.pad(codes, (0, 0, vision.num_prefix, 0)), persistent=False)
        self.code_scale = nn.Parameter(torch.full((1,), 0.1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P + N, C) to (B, P + N, width)."""
        codes = self.get_buffer("codes").to(tokens.dtype)
        adapted: Tensor = self.linear(self.norm(tokens)) + self.code_scale * codes
        return adapted


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed sine-cosine position codes (h * w, width), for encoders that carry no position of their own."""
    if width % 4:
        raise ValueError(f"position codes need a width that is a multiple of 4, got {width}")
    frequency = 1.0 / 10000 ** (torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (rows, columns)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
