"""Transformer blocks, the stack of them under a CLS token, and fixed position codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayzero.encoders.vision import VisionEncoder


class Block(nn.Module):
    """A pre-norm DINOv2 encoder block: attention and MLP of ratio 4, GELU, LayerScale, no dropout.

    ``layer_scale=None`` leaves LayerScale out, as in a plain ViT. Weights keep PyTorch's default initialisation
    (RadZero spec, section 3).
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

    def forward(self, x: Tensor, *, first_only: bool = False) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C); ``first_only`` computes the first of them alone, (B, 1, C)."""
        query, key, value = self._heads(self.norm1(x))
        if first_only:
            x, query = x[:, :1], query[:, :, :1]
        return self._finish(x, F.scaled_dot_product_attention(query, key, value))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``forward`` by way of the attention (B, heads, N, N), for maps that need it and its gradient."""
        query, key, value = self._heads(self.norm1(x))
        attention = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        return self._finish(x, attention @ value), attention

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, width = x.shape
        query, key, value = (
            self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind()
        )
        return query, key, value

    def mix(self, x: Tensor) -> Tensor:
        """What attention adds to the tokens, from the normalised ``x`` (B, N, C)."""
        return self._project(F.scaled_dot_product_attention(*self._heads(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """What the MLP adds to the tokens, from the normalised ``x`` (B, N, C)."""
        return _scaled(self.contract(F.gelu(self.expand(x))), self.scale2)

    def _project(self, attended: Tensor) -> Tensor:
        return _scaled(self.project(attended.transpose(1, 2).flatten(2)), self.scale1)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self._project(attended)
        return x + self.feed_forward(self.norm2(x))


class Transformer(nn.Module):
    """A CLS token in front of the tokens, plain ViT blocks, and a final LayerNorm."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(Block(width, heads, layer_scale=None) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def prepend(self, tokens: Tensor) -> Tensor:
        """``tokens`` (B, N, C) behind the CLS token, (B, 1 + N, C)."""
        return torch.cat([self.cls.to(tokens.dtype).expand(len(tokens), 1, -1), tokens], dim=1)

    def forward(self, tokens: Tensor, *, cls_only: bool = False) -> Tensor:
        """Tokens (B, N, C) to (B, 1 + N, C), or to the CLS token alone (B, 1, C).

        The last block then computes one token instead of all, which nothing that reads CLS alone can tell.
        """
        x = self.prepend(tokens)
        for index, block in enumerate(self.blocks):
            x = block(x, first_only=cls_only and index == len(self.blocks) - 1)
        normed: Tensor = self.norm(x)
        return normed


class Adapter(nn.Module):
    """Brings a vision encoder's tokens to another width: LayerNorm, one linear map, and position codes.

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


def sincos_positions(grid: tuple[int, ...], width: int) -> Tensor:
    """Fixed sine-cosine position codes (N, width) of a grid, for encoders that carry no position of their own."""
    share = 2 * len(grid)
    if width % share:
        raise ValueError(f"position codes on a grid {grid} need a width that is a multiple of {share}, got {width}")
    frequency = 1.0 / 10000 ** (torch.arange(width // share) / (width // share))
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in axes]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else scale * x
