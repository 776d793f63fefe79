"""The masked vision transformer: published weights, subsets of patches, stems."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer, ViTMAEConfig, ViTMAEModel

from rayzero.config import ConfigError, TextConfig, VisionConfig
from rayzero.encoders.masked_vit import MaskedViT, PatchEmbedding, Standardise, build_masked_vit, is_definition
from rayzero.encoders.text import build_text
from rayzero.encoders.vision import EfficientNetLite0
from rayzero.phantom.films import render_films
from rayzero.phantom.patient import sample_patient
from tests.encoders.tiny import WORDS, TinyVision, tiny_bert

SIZES = {"width": 8, "depth": 2, "heads": 2}


@pytest.fixture
def autoencoder(tmp_path: Path) -> ViTMAEModel:
    """A tiny masked autoencoder as a hub would hold it, its weights away from their symmetric start."""
    config = ViTMAEConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        mask_ratio=0.0,
        layer_norm_eps=1e-6,
    )
    model = ViTMAEModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "mae")
    return model.eval()


def test_published_weights_give_the_published_function(autoencoder: ViTMAEModel, tmp_path: Path) -> None:
    vit = build_masked_vit(VisionConfig(encoder=str(tmp_path / "mae"), resolution=32, frozen=False), **SIZES)
    pixels = torch.rand(2, 1, 32, 32)
    normalised = ((pixels - 0.4785) / 0.2834).expand(-1, 3, -1, -1)
    # Nothing is masked, yet transformers shuffles: noise in rising order keeps the places.
    with torch.no_grad():
        theirs = autoencoder(normalised, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        torch.testing.assert_close(vit(pixels), theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"model.width, depth and heads are \(8, 3, 2\)"):
        build_masked_vit(VisionConfig(encoder=str(tmp_path / "mae"), resolution=32), width=8, depth=3, heads=2)


def test_a_definition_rebuilds_the_architecture(autoencoder: ViTMAEModel, tmp_path: Path) -> None:
    vit = build_masked_vit(VisionConfig(encoder=str(tmp_path / "mae"), resolution=64), **SIZES)
    vit.save_definition(tmp_path / "definition")
    assert is_definition(str(tmp_path / "definition"))
    again = build_masked_vit(VisionConfig(encoder=str(tmp_path / "definition"), resolution=64), **SIZES)
    again.load_state_dict(vit.state_dict())
    pixels = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(again(pixels), vit(pixels), rtol=0, atol=0)


def test_a_patch_that_is_left_out_leaves_no_trace() -> None:
    vit = MaskedViT(PatchEmbedding(16, image_size=16, patch=4, width=8), **SIZES)
    pixels = torch.rand(1, 1, 16, 16)
    changed = pixels.clone()
    changed[..., :4, :4] = 0.0
    kept = vit.encode(vit.embed(pixels)[:, 1:])
    torch.testing.assert_close(vit.encode(vit.embed(changed)[:, 1:]), kept, rtol=0, atol=0)
    assert not torch.allclose(vit(changed), vit(pixels))


def test_a_frozen_stem_takes_pixels_or_its_own_features() -> None:
    stem = TinyVision()
    vit = MaskedViT(stem, **SIZES)
    pixels = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(vit.embed(features=stem(pixels)), vit.embed(pixels))
    assert vit.embed(pixels).shape == (2, 16, 8)  # CLS of the stem is no patch


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"vision\.resolution=300 is not a whole multiple"):
        PatchEmbedding(300)
    with pytest.raises(ConfigError, match=r"model\.width=16"):
        MaskedViT(PatchEmbedding(16, image_size=16, patch=4, width=8), width=16, depth=1, heads=2)


def test_cxr_bert_is_read_without_running_its_code(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    config = BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    network = BertModel(config)
    network.save_pretrained(tmp_path / "cxr")
    BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "cxr")
    file = tmp_path / "cxr" / "config.json"
    text = file.read_text().replace('"model_type": "bert"', '"model_type": "cxr-bert", "projection_size": 128')
    file.write_text(text)
    encoder = build_text(TextConfig(encoder=str(tmp_path / "cxr"))).eval()
    tokens = encoder.tokenize(["There is edema"])
    expected = network.eval()(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
    torch.testing.assert_close(encoder(tokens)[1], expected)


def test_a_vector_is_laid_on_every_embedded_token(tmp_path: Path) -> None:
    encoder = build_text(TextConfig(encoder=tiny_bert(tmp_path))).eval()
    tokens = encoder.tokenize(["There is edema", "There is no nodule"])
    plain = encoder(tokens)[1]
    torch.testing.assert_close(encoder(tokens, torch.zeros(2, 8))[1], plain)
    shifted = encoder(tokens, torch.tensor([[0.0] * 8, [3.0, *[0.0] * 7]]))[1]
    torch.testing.assert_close(shifted[0], plain[0])
    assert not torch.allclose(shifted[1], plain[1])
    # The vector is for that call alone.
    torch.testing.assert_close(encoder(tokens)[1], plain)


def test_a_measured_stem_is_standardised() -> None:
    """Films lose what they share; a stem without statistics is left as it is."""
    lite0 = EfficientNetLite0(256, pretrained=True).eval()
    films = [render_films(sample_patient(5, index, "test").studies[0], 256).pa.pixels for index in range(4)]
    seen = torch.from_numpy(np.stack(films)).float().unsqueeze(1)
    with torch.inference_mode():
        standardised = Standardise(lite0)(lite0(seen))
    assert standardised.mean().abs() < 0.3
    assert 0.7 < standardised.std() < 1.4
    plain = TinyVision()
    tokens = torch.randn(2, 3, plain.width)
    torch.testing.assert_close(Standardise(plain)(tokens), tokens)
