"""A BrgSA small enough for tests, through the real interfaces."""

from __future__ import annotations

from pathlib import Path

import torch

from rayzero.alignment import registry
from rayzero.config import Config, load_config
from rayzero.encoders.volume import ViT3D
from tests.encoders.test_volume import TINY
from tests.encoders.tiny import tiny_bert


def tiny_brgsa(folder: Path, *overrides: str) -> Config:
    """Settings of a BrgSA over volumes of 8 x 16 x 16 voxels; its encoders are written below ``folder``.

    Seeds torch, so that what is built of the settings next is the same each time.
    """
    torch.manual_seed(0)
    ViT3D(TINY, (8, 16, 16), normalised=False).save_definition(folder / "vit3d")
    settings = [
        "system=brgsa",
        f"vision.encoder={folder / 'vit3d'}",
        f"text.encoder={tiny_bert(folder / 'bert')}",
        "data.input=volume",
        "data.volume_shape=[8,16,16]",
        "model.width=8",
        "model.bank_size=16",
        "model.text_layers=2",
    ]
    return registry.resolve(load_config(None, [*settings, *overrides]))
