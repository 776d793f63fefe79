"""Encoders small enough for exact tests, through the real interfaces."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizerFast

from rayzero.encoders.text import TextEncoder
from rayzero.encoders.vision import VisionEncoder

WORDS = [
    "there",
    "is",
    "a",
    "no",
    "may",
    "be",
    "of",
    "the",
    "left",
    "right",
    "lung",
    "nodule",
    "effusion",
    "edema",
    "fracture",
    "mass",
    "pneumothorax",
]


class TinyVision(VisionEncoder):
    """2x2 patches of an 8x8 image through one linear map, 16 tokens and a CLS."""

    width, grid, num_prefix = 8, (4, 4), 1

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 2, stride=2)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.patch(pixels).flatten(2).transpose(1, 2)
        return nn.functional.pad(tokens, (0, 0, 1, 0)) + tokens.mean(dim=1, keepdim=True)

    def save_definition(self, folder: Path) -> None:
        raise NotImplementedError


def tiny_bert(folder: Path) -> str:
    """Write a two-layer BERT of width 8 and its word-level tokenizer to ``folder``, as a hub would hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(vocabulary)).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def tiny_text(folder: Path) -> TextEncoder:
    """A text encoder over the model that ``tiny_bert`` wrote to ``folder``."""
    return TextEncoder(str(folder), max_tokens=16, pretrained=True)
