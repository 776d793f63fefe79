"""CT encoders: volumes (B, 1, Z, Y, X) in [-1, 1] to tokens (B, P + N, C) on a grid (z, h, w), z slowest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from rayzero.config import ConfigError
from rayzero.encoders.transformer import Transformer
from rayzero.encoders.vision import MARKER, VisionEncoder

VIT3D = "vit3d"
WEIGHTS = "model.safetensors"
"""Optional in an encoder's folder, beside its definition: pretrained weights."""

CHEST_XRAY = (0.4978, 0.2449)
"""What BrgSA subtracts and divides by: statistics of radiographs in [0, 1], applied to [-1, 1] (spec, section 1)."""

# Axial slices that stand in for the three colours of a 2-D encoder.
_SLAB = 3


@dataclass(frozen=True)
class ViT3DSize:
    """Architecture of a 3-D ViT; ``patch`` (voxels) and ``base_grid`` (patches) run Z, Y, X."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: tuple[int, int, int] = (8, 16, 16)
    base_grid: tuple[int, int, int] = (14, 14, 14)


SIZES = {"vit3d-base": ViT3DSize()}
"""Encoders by name: ``vit3d-base`` is BrgSA's ViT-B/16x16x8 (spec, section 3)."""


class ViT3D(VisionEncoder):
    """A plain ViT on patches of a volume, CLS first (BrgSA spec, section 3).

    Positions are the published sine-cosine table of ``base_grid``, resized to the grid at hand. The table is fixed:
    the published one never trained either, because its resize runs without gradient, and a table that trained on
    one grid would have to be trusted on another. It is stored with the weights, so that a pretrained table loads.

    ``normalised`` applies ``CHEST_XRAY``, which published weights need. Any volume of whole patches is encoded;
    ``grid`` is that of the ``shape`` (Z, Y, X) of a run. Raises ConfigError when that is not whole patches.
    """

    num_prefix = 1

    def __init__(self, size: ViT3DSize, shape: tuple[int, int, int], *, normalised: bool) -> None:
        super().__init__()
        if any(side % part for side, part in zip(shape, size.patch, strict=True)):
            raise ConfigError(f"data.volume_shape={list(shape)} is not whole patches of {list(size.patch)} (Z, Y, X)")
        z, y, x = (side // part for side, part in zip(shape, size.patch, strict=True))
        self.size, self.grid, self.width = size, (z, y, x), size.width
        self._normalised = normalised
        self.patch = nn.Conv3d(1, size.width, size.patch, stride=size.patch)
        self.transformer = Transformer(size.width, size.depth, size.heads)
        self.register_buffer("positions", volume_positions(size.base_grid, size.width))

    def embed(self, pixels: Tensor) -> Tensor:
        """Patches (B, N, C) of ``pixels`` with their positions. Raises ValueError for what is not whole patches."""
        sides = pixels.shape[2:] if pixels.ndim == 5 and pixels.shape[1] == 1 else (1, 1, 1)
        if any(side % part for side, part in zip(sides, self.size.patch, strict=True)):
            raise ValueError(
                f"a volume encoder takes (B, 1, Z, Y, X) in whole patches of {list(self.size.patch)}, "
                f"got {tuple(pixels.shape)}"
            )
        mean, deviation = CHEST_XRAY
        patches: Tensor = self.patch((pixels - mean) / deviation if self._normalised else pixels)
        codes = self.get_buffer("positions").to(patches.dtype)
        if patches.shape[2:] != codes.shape[:3]:
            wide = codes.permute(3, 0, 1, 2).unsqueeze(0)
            resized = F.interpolate(wide, size=patches.shape[2:], mode="trilinear", align_corners=False)
            codes = resized[0].permute(1, 2, 3, 0)
        return patches.flatten(2).transpose(1, 2) + codes.flatten(0, 2)

    def forward(self, pixels: Tensor, *, cls_only: bool = False) -> Tensor:
        """Tokens (B, 1 + N, C), or CLS alone (B, 1, C), after the final norm."""
        tokens: Tensor = self.transformer(self.embed(pixels), cls_only=cls_only)
        return tokens

    def save_definition(self, folder: Path) -> None:
        """Write the architecture."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(json.dumps({"architecture": VIT3D, **asdict(self.size)}))


class SliceEncoder(VisionEncoder):
    """A 2-D encoder on slabs of three axial slices, which stand in for its three colours.

    Tokens of a volume (Z, R, R) lie on the grid (Z / 3, h, w); CLS and register tokens of the slabs are dropped.
    Raises ConfigError when Z is not a multiple of three.
    """

    num_prefix = 0

    def __init__(self, slices: VisionEncoder, depth: int) -> None:
        super().__init__()
        if depth % _SLAB:
            raise ConfigError(f"data.volume_shape: {depth} slices are not a multiple of {_SLAB}, one per colour")
        self.slices = slices
        self.grid, self.width = (depth // _SLAB, *slices.grid), slices.width

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens (B, N, C) of ``pixels`` (B, 1, Z, R, R)."""
        if pixels.ndim != 5 or pixels.shape[1:3] != (1, _SLAB * self.grid[0]):
            raise ValueError(
                f"this encoder takes volumes (B, 1, {_SLAB * self.grid[0]}, Y, X), got {tuple(pixels.shape)}"
            )
        slabs = pixels.squeeze(1).unflatten(1, (self.grid[0], _SLAB)).flatten(0, 1)
        tokens: Tensor = self.slices((slabs + 1) / 2)
        return tokens[:, self.slices.num_prefix :].reshape(len(pixels), -1, self.width)

    def save_definition(self, folder: Path) -> None:
        """Write the definition of the 2-D encoder; the rest follows from the shape of the volumes."""
        self.slices.save_definition(folder)


def vit3d_size(encoder: str) -> ViT3DSize | None:
    """The architecture that ``encoder`` (a name, or a folder with a definition) stands for; None if no 3-D ViT."""
    if encoder in SIZES:
        return SIZES[encoder]
    marker = Path(encoder) / MARKER
    definition = json.loads(marker.read_text()) if marker.is_file() else {}
    if definition.pop("architecture", "") != VIT3D:
        return None
    sizes = {name: int(definition[name]) for name in ("width", "depth", "heads")}
    return ViT3DSize(**sizes, patch=_triple(definition["patch"]), base_grid=_triple(definition["base_grid"]))


def build_vit3d(encoder: str, size: ViT3DSize, shape: tuple[int, int, int], *, normalised: bool) -> ViT3D:
    """A 3-D ViT of ``size``, with the weights of the folder ``encoder`` where it holds any.

    Raises ConfigError when those are of another architecture.
    """
    network = ViT3D(size, shape, normalised=normalised)
    weights = Path(encoder) / WEIGHTS
    if weights.is_file():
        try:
            network.load_state_dict(load_file(weights))
        except RuntimeError as error:
            raise ConfigError(f"vision.encoder={encoder!r}: {WEIGHTS} does not fit its definition: {error}") from None
    return network


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = values
    return z, y, x


def volume_positions(grid: tuple[int, int, int], width: int) -> Tensor:
    """Sine-cosine codes (*grid, width): a third of the width per axis, X first, as published for axes X, Y, Z.

    Coordinates run from 0 to 1 along each axis; half of a third holds sines, half cosines, at frequencies
    10000^(-k / (width / 6)). Raises ConfigError for a width that is not a multiple of 6.
    """
    if width % 6:
        raise ConfigError(f"3-D position codes need a width that is a multiple of 6, got {width}")
    # Real numbers even where an encoder is built on the meta device, to be filled with weights later.
    frequency = 10000.0 ** (-torch.arange(width // 6, device="cpu") / (width // 6))
    axes = (torch.linspace(0, 1, size, device="cpu") for size in grid)
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    angles = [axis.unsqueeze(-1) * frequency for axis in (x, y, z)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=-1)
