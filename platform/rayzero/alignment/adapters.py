"""ALTA's adapters: two bottlenecks per transformer block of a frozen tower (ALTA spec, section 3).

    vision (pre-norm):   a = attention(LN x);  x <- x + a + A1(a);  y = LN x;  x <- x + MLP(y) + A2(y) / 2
    text (post-norm):    h <- LN(attention + x);  h <- h + A1(h);   out <- LN(FFN(h) + h) + A2(h) / 2

Their last layer starts at zero in both towers, set after the pretrained weights are in: an adapted tower starts as
exactly the function that it was. (In the published code the text loader overwrites these zeros with noise.)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from rayzero.config import ConfigError
from rayzero.encoders.masked_vit import MaskedViT
from rayzero.encoders.text import TextEncoder
from rayzero.encoders.transformer import Block


class Bottleneck(nn.Module):
    """x -> W_up gelu(W_down x), zero at first."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        narrow = max(1, round(width * ratio))
        self.down, self.up = nn.Linear(width, narrow), nn.Linear(narrow, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (..., C) to rows (..., C)."""
        added: Tensor = self.up(F.gelu(self.down(x)))
        return added


class AdaptedBlock(nn.Module):
    """A frozen ViT block with an adapter after its attention and one beside its MLP."""

    def __init__(self, block: Block, ratio: float) -> None:
        super().__init__()
        width = block.norm1.normalized_shape[0]
        self.block, self.after, self.beside = block, Bottleneck(width, ratio), Bottleneck(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C)."""
        attended = self.block.mix(self.block.norm1(x))
        x = x + attended + self.after(attended)
        y = self.block.norm2(x)
        out: Tensor = x + self.block.feed_forward(y) + 0.5 * self.beside(y)
        return out


class _AfterAttention(nn.Module):
    """Takes the place of a BERT layer's attention, whose output includes residual and norm."""

    def __init__(self, attention: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.attention, self.adapter = attention, adapter

    def forward(self, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        hidden, *rest = self.attention(*inputs, **options)
        return (hidden + self.adapter(hidden), *rest)


class _BesideFeedForward(nn.Module):
    """Takes the place of the end of a BERT layer's feed-forward: its second map, residual and norm."""

    def __init__(self, output: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.output, self.adapter = output, adapter

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        result: Tensor = self.output(hidden, residual) + 0.5 * self.adapter(residual)
        return result


def adapt_vision(vision: MaskedViT, ratio: float) -> None:
    """Freeze ``vision`` but for its norms and CLS, and put adapters into every block."""
    vision.requires_grad_(False)
    blocks = [AdaptedBlock(block, ratio) for block in vision.blocks if isinstance(block, Block)]
    vision.blocks = nn.ModuleList(blocks)
    vision.cls.requires_grad_(True)
    for part in (vision.norm, *(norm for one in blocks for norm in (one.block.norm1, one.block.norm2))):
        part.requires_grad_(True)


def adapt_text(text: TextEncoder, ratio: float, last: int | None) -> None:
    """Freeze ``text`` and put adapters into its ``last`` layers, whose norms train; None is all, embeddings included.

    Raises ConfigError when there are fewer layers.
    """
    text.requires_grad_(False)
    layers = list(text.network.encoder.layer)
    if last is not None and last > len(layers):
        raise ConfigError(f"text.trainable_layers={last}: this encoder has {len(layers)} layers")
    chosen = layers if last is None else layers[len(layers) - last :]
    for part in [*([text.network.embeddings] if last is None else []), *chosen]:
        for norm in part.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.requires_grad_(True)
    for layer in chosen:
        layer.attention = _AfterAttention(layer.attention, Bottleneck(text.width, ratio))
        layer.output = _BesideFeedForward(layer.output, Bottleneck(text.width, ratio))
