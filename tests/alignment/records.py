"""Studies and towers of a few numbers, for exact tests of MRM and ALTA."""

from __future__ import annotations

from pathlib import Path

import torch

from rayzero.alignment.alta import Alta, AltaSettings
from rayzero.alignment.base import Batch
from rayzero.alignment.masked_records import ImageDecoder
from rayzero.alignment.mrm import MRM
from rayzero.encoders.masked_vit import MaskedViT, PatchEmbedding
from rayzero.encoders.text import TextEncoder
from tests.encoders.tiny import tiny_text

# One text of each study; two studies say the same.
SAID = (
    "There is no effusion",
    "There is a nodule of the left lung",
    "There is edema",
    "There is no effusion",
    "There may be a fracture",
)
PRESENT = ((1, 1, 1, 1), (1, 0, 0, 0), (1, 0, 1, 0), (1, 1, 0, 0), (1, 0, 0, 1))
SETTINGS = AltaSettings(
    width=8, depth=2, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=1, projection=6, scale=3.0
)


def vit() -> MaskedViT:
    """Images of 16 px, seen at 8 px as 4x4 patches."""
    return MaskedViT(PatchEmbedding(16, image_size=8, patch=2, width=8), width=8, depth=2, heads=2)


def alta(folder: Path) -> Alta:
    """An ALTA over a text encoder that ``tiny_bert`` wrote; float64, no dropout: its draws differ between layouts."""
    torch.manual_seed(0)
    vision = vit()
    model = Alta(vision, tiny_text(folder), ImageDecoder(vision, SETTINGS, 16), SETTINGS).double().eval()
    # Adapters, views and times away from zero, so that every path carries a gradient.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.1)
    return model


def mrm(folder: Path) -> MRM:
    """An MRM of the same sizes."""
    torch.manual_seed(0)
    vision = vit()
    return MRM(vision, tiny_text(folder), ImageDecoder(vision, SETTINGS, 16), SETTINGS).double().eval()


def batch(text: TextEncoder, studies: range) -> Batch:
    """The ``studies`` of ``SAID``, their absent views filled with noise that must not matter."""
    pixels = torch.rand(len(SAID), 4, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    said = [SAID[i] for i in studies]
    return Batch(
        texts=text.tokenize(said),
        text_ids=torch.tensor([SAID.index(one) for one in said]),
        positives=torch.tensor([[one == other for other in said] for one in said]),
        pixels=pixels[studies.start : studies.stop],
        present=torch.tensor(PRESENT[studies.start : studies.stop], dtype=torch.bool),
    )
