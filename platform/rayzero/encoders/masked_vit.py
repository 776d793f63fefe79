"""A vision transformer that reads any subset of an image's patches, as masked autoencoders do.

Its patches come from a stem. ``PatchEmbedding`` is the plain one: each patch is seen by itself, so a patch that is
left out leaves no trace. Any frozen encoder of this package can be a stem, too; its patch vectors look beyond the
patch's edges (those of EfficientNet-Lite0 by far), so what is left out leaks into the neighbours that stay. Masked
modelling over such a stem is an easier task that teaches less about texture; its use is that a small model starts from
pretrained, cached features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PretrainedConfig

from rayzero.config import ConfigError, VisionConfig
from rayzero.encoders.transformer import Adapter, Block, sincos_positions
from rayzero.encoders.vision import LITE0, MARKER, VisionEncoder, build_vision

_ARCHITECTURE = "patch-embedding"
# Chest radiographs (ALTA spec, section 1).
_MEAN, _STD = 0.4785, 0.2834


class PatchEmbedding(VisionEncoder):
    """Patches of a down-sampled image through one linear map, plus position codes.

    Images (B, 1, R, R) are brought to ``image_size``, R being a whole multiple of it: what a decoder restores may
    have more pixels than what the encoder sees. The map reads three equal channels, as published weights do.
    """

    num_prefix = 0
    channels = 3

    def __init__(self, resolution: int, *, image_size: int = 224, patch: int = 16, width: int = 768) -> None:
        super().__init__()
        if resolution % image_size or image_size % patch:
            raise ConfigError(
                f"vision.resolution={resolution} is not a whole multiple of the encoder's own {image_size} px; "
                f"try {image_size} or {2 * image_size}"
            )
        self.image_size, self.patch, self.width = image_size, patch, width
        self.grid = (image_size // patch, image_size // patch)
        self.project = nn.Conv2d(self.channels, width, patch, stride=patch)
        # Kept with the weights: those of a published checkpoint may order their codes in another way.
        self.register_buffer("codes", sincos_positions(self.grid, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch vectors (B, N, C)."""
        size = (self.image_size, self.image_size)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        patches: Tensor = self.project(((pixels - _MEAN) / _STD).expand(-1, self.channels, -1, -1))
        return patches.flatten(2).transpose(1, 2) + self.get_buffer("codes")

    def save_definition(self, folder: Path) -> None:
        """Write the sizes."""
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {"image_size": self.image_size, "patch": self.patch, "width": self.width}
        (folder / MARKER).write_text(json.dumps({"architecture": _ARCHITECTURE, **sizes}))


class Standardise(nn.Module):
    """Channels of a stem whose statistics are known to mean 0 and deviation 1, as pixels of an image are.

    What all films share would otherwise be most of a token, and masked modelling makes more of it: vectors of different
    films then differ by less than contrasting them can amplify in a short run.
    """

    def __init__(self, stem: VisionEncoder) -> None:
        super().__init__()
        mean, std = stem.channel_statistics or (torch.zeros(stem.width), torch.ones(stem.width))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C)."""
        return (tokens - self.get_buffer("mean")) / self.get_buffer("std")


class MaskedViT(VisionEncoder):
    """A stem, a CLS token, pre-norm blocks and a final norm.

    ``channels`` is how many of them a decoder of its images restores.
    """

    num_prefix = 1

    def __init__(self, stem: VisionEncoder, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        plain = isinstance(stem, PatchEmbedding)
        if plain and stem.width != width:
            raise ConfigError(f"model.width={width}: the patch embedding of vision.encoder has width {stem.width}")
        self.stem, self.width, self.grid = stem, width, stem.grid
        self.channels = 3 if plain else 1
        self.lift = nn.Identity() if plain else nn.Sequential(Standardise(stem), Adapter(stem, width))
        self.cls = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.blocks = nn.ModuleList([Block(width, heads, None) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens (B, 1 + N, C) of whole images, CLS first."""
        return self.encode(self.embed(pixels))

    def embed(self, pixels: Tensor | None = None, *, features: Tensor | None = None) -> Tensor:
        """Patches (B, N, C) of ``pixels`` (B, 1, R, R), or of the ``features`` that the stem gave for them."""
        if features is None:
            assert pixels is not None
            features = self.stem(pixels)
        patches: Tensor = self.lift(features.to(self.cls.dtype))
        return patches[:, self.stem.num_prefix :]

    def encode(self, patches: Tensor, added: Tensor | None = None) -> Tensor:
        """Tokens (B, 1 + n, C) of any n ``patches`` (B, n, C) per image; ``added`` (B, C) is laid on every token."""
        x = torch.cat([self.cls.expand(patches.shape[0], -1, -1), patches], dim=1)
        if added is not None:
            x = x + added.unsqueeze(1)
        for block in self.blocks:
            x = block(x)
        hidden: Tensor = self.norm(x)
        return hidden

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for a frozen stem, which keeps its inference statistics."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.stem.parameters()):
            self.stem.eval()
        return self

    def save_definition(self, folder: Path) -> None:
        """Write the stem's definition; the rest follows from ``model.*``."""
        self.stem.save_definition(folder)


def build_masked_vit(config: VisionConfig, *, width: int, depth: int, heads: int) -> MaskedViT:
    """The transformer over the stem that ``config.encoder`` names.

    A masked autoencoder (a hub id or a folder of type vit_mae) gives the patch embedding, the blocks and the norm; any
    other encoder is a frozen stem under new blocks. A folder written by ``save_definition`` gives random weights, for a
    bundle to fill. Raises ConfigError when the encoder cannot be had or has other sizes than asked for.
    """
    definition = Path(config.encoder) / MARKER
    if definition.is_file():
        sizes = json.loads(definition.read_text())
        if sizes.pop("architecture") == _ARCHITECTURE:
            return MaskedViT(PatchEmbedding(config.resolution, **sizes), width=width, depth=depth, heads=heads)
    elif config.encoder != LITE0 and _is_autoencoder(config.encoder):
        return _pretrained(config, width=width, depth=depth, heads=heads)
    return MaskedViT(build_vision(config).requires_grad_(False), width=width, depth=depth, heads=heads)


def is_definition(encoder: str) -> bool:
    """Whether ``encoder`` is a folder that ``save_definition`` wrote, whose weights are with a bundle."""
    return (Path(encoder) / MARKER).is_file()


def _is_autoencoder(source: str) -> bool:
    try:
        return PretrainedConfig.get_config_dict(source)[0].get("model_type") == "vit_mae"
    except OSError:
        return False  # nothing there: build_vision says so


def _pretrained(config: VisionConfig, *, width: int, depth: int, heads: int) -> MaskedViT:
    network = AutoModel.from_pretrained(config.encoder)
    own = network.config
    asked, found = (width, depth, heads), (own.hidden_size, own.num_hidden_layers, own.num_attention_heads)
    if asked != found:
        raise ConfigError(
            f"model.width, depth and heads are {asked}, vision.encoder={config.encoder!r} has {found}; set them so"
        )
    stem = PatchEmbedding(config.resolution, image_size=own.image_size, patch=own.patch_size, width=width)
    vit = MaskedViT(stem, width=width, depth=depth, heads=heads)
    vit.load_state_dict(_renamed(network.state_dict(), depth))
    return vit


def _renamed(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The weights of transformers' masked autoencoder under this module's names."""
    ours = {
        "cls": theirs["embeddings.cls_token"] + theirs["embeddings.position_embeddings"][:, :1],
        "stem.codes": theirs["embeddings.position_embeddings"][0, 1:],
    }
    parts = {"stem.project": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    for index in range(depth):
        names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "project": "attention.o_proj"}
        names |= {"expand": "mlp.fc1", "contract": "mlp.fc2"}
        parts |= {f"blocks.{index}.{own}": f"layers.{index}.{other}" for own, other in names.items()}
        for kind in ("weight", "bias"):
            three = [theirs[f"layers.{index}.attention.{part}_proj.{kind}"] for part in "qkv"]
            ours[f"blocks.{index}.qkv.{kind}"] = torch.cat(three)
    return ours | {
        f"{own}.{kind}": theirs[f"{other}.{kind}"] for own, other in parts.items() for kind in ("weight", "bias")
    }
