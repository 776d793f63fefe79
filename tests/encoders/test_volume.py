"""Volume encoders: the published architecture, its positions, slabs through a 2-D encoder, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rayzero.config import ConfigError, DataConfig, VisionConfig
from rayzero.encoders.transformer import Transformer
from rayzero.encoders.vision import EfficientNetLite0, build_vision
from rayzero.encoders.volume import SIZES, SliceEncoder, ViT3D, ViT3DSize, volume_positions

TINY = ViT3DSize(width=12, depth=2, heads=2, patch=(2, 4, 4), base_grid=(2, 2, 2))


def volume_data(*shape: int) -> DataConfig:
    return DataConfig(input="volume", volume_shape=shape)


def definition(folder: Path) -> str:
    """A folder that describes the tiny ViT."""
    ViT3D(TINY, (4, 8, 8), normalised=False).save_definition(folder)
    return str(folder)


def test_the_published_size() -> None:
    with torch.device("meta"):
        encoder = ViT3D(SIZES["vit3d-base"], (112, 224, 224), normalised=True)
    block = 4 * (768 * 768 + 768) + 2 * 4 * 768 * 768 + 4 * 768 + 768 + 4 * 768
    expected = (16 * 16 * 8 + 1) * 768 + 768 + 12 * block + 2 * 768
    assert sum(p.numel() for p in encoder.parameters()) == expected == 86_630_400
    # The table is a buffer: 14^3 codes that never train.
    assert encoder.get_buffer("positions").shape == (14, 14, 14, 768)
    assert (encoder.grid, encoder.num_prefix, encoder.width) == ((14, 14, 14), 1, 768)
    assert math.prod(encoder.grid) + 1 == 2745


def test_positions_are_sines_and_cosines_of_unit_coordinates() -> None:
    codes = volume_positions((2, 3, 5), 768)
    assert codes.shape == (2, 3, 5, 768)
    z, y, x = 1.0, 0.5, 0.75
    for k in (0, 1, 127):
        for axis, place in enumerate((x, y, z)):
            angle = place * 10000 ** (-k / 128)
            assert codes[1, 1, 3, 256 * axis + k] == pytest.approx(math.sin(angle), abs=1e-6)
            assert codes[1, 1, 3, 256 * axis + 128 + k] == pytest.approx(math.cos(angle), abs=1e-6)
    with pytest.raises(ConfigError, match="multiple of 6, got 16"):
        volume_positions((2, 2, 2), 16)


def test_positions_are_resized_to_the_grid_at_hand() -> None:
    encoder = ViT3D(TINY, (6, 8, 16), normalised=False).eval()
    torch.nn.init.zeros_(encoder.patch.weight)
    torch.nn.init.zeros_(encoder.patch.bias)
    table = encoder.get_buffer("positions")
    torch.testing.assert_close(encoder.embed(torch.rand(1, 1, 4, 8, 8))[0], table.flatten(0, 2))
    resized = encoder.embed(torch.rand(1, 1, 6, 8, 16))[0].unflatten(0, (3, 2, 4))
    # align_corners=False: the middle of three lies half way between two, the outer ones on the table's ends.
    torch.testing.assert_close(resized[1, :, 0], table.mean(dim=0)[:, 0])
    torch.testing.assert_close(resized[2, 1, 3], table[1, 1, 1])


def test_tokens_follow_z_then_y_then_x() -> None:
    encoder = ViT3D(TINY, (6, 8, 16), normalised=False).eval()
    pixels = torch.zeros(1, 1, 6, 8, 16)
    before = encoder.embed(pixels)
    pixels[0, 0, 4:6, 0:4, 8:12] = 1.0
    changed = (encoder.embed(pixels) - before).abs().sum(dim=-1)[0].unflatten(0, encoder.grid)
    assert changed.nonzero().tolist() == [[2, 0, 2]]


def test_the_published_statistics_are_a_setting() -> None:
    plain, published = (ViT3D(TINY, (4, 8, 8), normalised=flag) for flag in (False, True))
    published.load_state_dict(plain.state_dict())
    air = torch.full((1, 1, 4, 8, 8), -1.0)
    torch.testing.assert_close(published(air), plain(torch.full_like(air, (-1 - 0.4978) / 0.2449)))


def test_cls_alone_is_cls_of_all() -> None:
    stack = Transformer(12, 3, 2).double()
    tokens = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(stack(tokens, cls_only=True), stack(tokens)[:, :1], rtol=1e-12, atol=1e-14)


def test_attention_written_out_gives_the_same_tokens() -> None:
    block = Transformer(12, 1, 2).double().blocks[0]
    tokens = torch.randn(2, 7, 12, dtype=torch.float64)
    output, attention = block.attend(tokens)
    torch.testing.assert_close(output, block(tokens), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 2, 7, dtype=torch.float64))


def test_slabs_of_three_slices_go_through_a_2d_encoder() -> None:
    encoder = build_vision(VisionConfig(), volume_data(6, 64, 64)).eval()
    assert isinstance(encoder, SliceEncoder)
    assert (encoder.grid, encoder.width, encoder.num_prefix) == ((2, 4, 4), 464, 0)
    assert not any(p.requires_grad for p in encoder.parameters())
    pixels = torch.rand(2, 1, 6, 64, 64) * 2 - 1
    inner = encoder.slices
    assert isinstance(inner, EfficientNetLite0)
    with torch.inference_mode():
        tokens = encoder(pixels)
        upper = inner((pixels[1, :, 3:6] + 1) / 2)
    torch.testing.assert_close(tokens[1].unflatten(0, encoder.grid)[1].flatten(0, 1), upper[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", ["slices", "vit3d"])
def test_a_definition_rebuilds_the_architecture(source: str, tmp_path: Path) -> None:
    name = definition(tmp_path / "hub") if source == "vit3d" else "efficientnet-lite0"
    data = volume_data(6, 64, 64)
    encoder = build_vision(VisionConfig(encoder=name), data).eval()
    encoder.save_definition(tmp_path / "saved")
    again = build_vision(VisionConfig(encoder=str(tmp_path / "saved")), data).eval()
    again.load_state_dict(encoder.state_dict())
    pixels = torch.rand(1, 1, 6, 64, 64)
    torch.testing.assert_close(again(pixels), encoder(pixels))


def test_weights_beside_a_definition_are_loaded(tmp_path: Path) -> None:
    name, data = definition(tmp_path), volume_data(4, 8, 8)
    pretrained = ViT3D(TINY, (4, 8, 8), normalised=False)
    save_file(pretrained.state_dict(), tmp_path / "model.safetensors")
    loaded = build_vision(VisionConfig(encoder=name), data)
    torch.testing.assert_close(loaded.state_dict(), pretrained.state_dict())
    other = json.loads((tmp_path / "encoder.json").read_text())
    (tmp_path / "encoder.json").write_text(json.dumps({**other, "depth": 1}))
    with pytest.raises(ConfigError, match=r"model\.safetensors does not fit its definition"):
        build_vision(VisionConfig(encoder=name), data)


def test_shapes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"volume_shape=\[100, 256, 256\] is not whole patches of \[8, 16, 16\]"):
        build_vision(VisionConfig(encoder="vit3d-base"), volume_data(100, 256, 256))
    with pytest.raises(ConfigError, match="takes square slices"):
        build_vision(VisionConfig(), volume_data(6, 64, 96))
    with pytest.raises(ConfigError, match="4 slices are not a multiple of 3"):
        build_vision(VisionConfig(), volume_data(4, 64, 64))
    encoder = build_vision(VisionConfig(encoder=definition(tmp_path)), volume_data(4, 8, 8))
    for wrong in ((1, 1, 8, 8), (1, 3, 4, 8, 8), (1, 1, 5, 8, 8)):
        with pytest.raises(ValueError, match=r"takes \(B, 1, Z, Y, X\) in whole patches"):
            encoder(torch.zeros(wrong))
    with pytest.raises(ValueError, match=r"takes volumes \(B, 1, 6, Y, X\)"):
        build_vision(VisionConfig(), volume_data(6, 64, 64))(torch.zeros(1, 1, 9, 64, 64))
