"""From word pieces to words, as CARZero reads a sentence (CARZero spec, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayzero.config import ConfigError
from rayzero.encoders.text import TextEncoder, TokenBatch

_CONTINUES = "##"


class WordAggregation(nn.Module):
    """Sums the vectors of a word's pieces into one slot; [CLS] and [SEP] are words.

    The slot of each piece follows from the vocabulary alone, so that no token is visited in a loop. Raises
    ConfigError for a tokenizer that is no WordPiece.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        kind = type(encoder.tokenizer.backend_tokenizer.model).__name__
        if kind != "WordPiece":
            raise ConfigError(f"text.encoder has a {kind} tokenizer; words are put together from WordPiece alone")
        vocabulary: dict[str, int] = encoder.tokenizer.get_vocab()
        continues = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.bool)
        for piece, number in vocabulary.items():
            continues[number] = piece.startswith(_CONTINUES)
        self.register_buffer("continues", continues, persistent=False)

    def mask(self, tokens: TokenBatch) -> Tensor:
        """Which slots (T, L) hold a word: the first n of a text of n words."""
        starts = self._starts(tokens)
        return torch.arange(starts.shape[1], device=starts.device) < starts.sum(dim=1, keepdim=True)

    def forward(self, pieces: Tensor, tokens: TokenBatch) -> Tensor:
        """Words (T, L, C) of piece vectors (T, L, C); empty slots are exact zeros."""
        pieces = pieces * tokens.mask.unsqueeze(-1).to(pieces.dtype)
        slot = self._starts(tokens).cumsum(dim=1) - 1
        return torch.zeros_like(pieces).scatter_add_(1, slot.unsqueeze(-1).expand_as(pieces), pieces)

    def _starts(self, tokens: TokenBatch) -> Tensor:
        return tokens.mask.bool() & ~self.get_buffer("continues")[tokens.ids]
