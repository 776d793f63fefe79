"""ALTA and MRM: adapters, trainable parts, views, what is hidden, and where a bundle's weights go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertTokenizer

from rayzero.alignment import registry
from rayzero.alignment.alta import Alta, AltaSettings
from rayzero.alignment.base import Batch, TextFeatures
from rayzero.alignment.masked_records import ImageDecoder, hide_patches, hide_words
from rayzero.bundle import load_bundle, save_bundle
from rayzero.config import Config, ConfigError, load_config
from rayzero.encoders.masked_vit import MaskedViT, PatchEmbedding
from rayzero.encoders.text import TextEncoder
from rayzero.training.batches import text_id
from tests.alignment import records
from tests.encoders.tiny import tiny_bert, tiny_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_bert(tmp_path / "bert")
    return tmp_path / "bert"


def test_adapted_towers_start_as_what_they_were(folder: Path) -> None:
    text, vision = tiny_text(folder).eval(), records.vit()
    tokens, pixels = text.tokenize(["There is edema", "There is no nodule of the left lung"]), torch.rand(2, 1, 16, 16)
    words, patches = text(tokens)[1], vision(pixels)
    Alta(vision, text, ImageDecoder(vision, records.SETTINGS, 16), records.SETTINGS).eval()
    torch.testing.assert_close(vision(pixels), patches, rtol=0, atol=0)
    torch.testing.assert_close(text(tokens)[1], words, rtol=0, atol=0)


def paper_sized(folder: Path) -> Alta:
    """ALTA as published, without its weights: ViT-B/16 at 224 of 448 px, BERT-base, adapters of ratio 0.25."""
    BertConfig().save_pretrained(folder / "base")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "base")
    settings = AltaSettings()
    with torch.device("meta"):
        vision = MaskedViT(PatchEmbedding(448), width=768, depth=12, heads=12)
        text = TextEncoder(str(folder / "base"), max_tokens=128, pretrained=False)
        return Alta(vision, text, ImageDecoder(vision, settings, 448), settings)


def test_paper_size_trains_the_published_parameters_and_the_two_that_were_left_out(folder: Path) -> None:
    model = paper_sized(folder)
    counts = {
        group: sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and rule(name))
        for group, rule in {
            "vision adapters": lambda n: n.startswith("vision.blocks") and "norm" not in n,
            "text adapters": lambda n: n.startswith("text.") and ".adapter." in n,
            "norms": lambda n: n.startswith(("vision.", "decoder.", "text.")) and "norm" in n.lower(),
            "heads": lambda n: "_head." in n,
            "masked words": lambda n: n.startswith(("report.transform", "report.norm", "report.bias")),
            "decoder": lambda n: n.startswith(("decoder.embed", "decoder.predict", "decoder.mask")),
            "tokens and scales": lambda n: n in ("vision.cls", "view", "time") or n.startswith("log_"),
            "condition": lambda n: n.startswith("report.condition"),
        }.items()
    }
    # ALTA spec, section 3.
    assert counts == {
        "vision adapters": 7_100_928,
        "text adapters": 7_100_928,
        "norms": 90_624,
        "heads": 460_800,
        "masked words": 622_650,
        "decoder": 590_592 + 2_362_368 + 768,
        "tokens and scales": 3_844,
        # Published as bert_embed, left at its random start by a list of names; here it is trained.
        "condition": 590_592,
    }
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == sum(counts.values()) == 18_333_502 + 590_592
    # Also published: a missing_token that stays zero (a view that is not there takes no part here), and the fixed
    # position codes of both image towers, CLS rows included, as frozen parameters (here buffers).
    missing_token, codes = 196 * 768, 2 * 197 * 768
    assert sum(p.numel() for p in model.parameters()) == 242_177_854 - missing_token - codes


def test_views_that_are_absent_take_no_part(folder: Path) -> None:
    model = records.alta(folder)
    batch = records.batch(model.text, range(5))
    assert batch.pixels is not None
    assert batch.present is not None
    emptied = batch.pixels * batch.present[:, :, None, None, None]
    for represent in (model.represent, records.mrm(folder).represent):
        torch.manual_seed(0)
        first = represent(batch)
        torch.manual_seed(0)
        second = represent(Batch(batch.texts, batch.text_ids, batch.positives, emptied, present=batch.present))
        for name, rows in first.items():
            torch.testing.assert_close(second[name], rows, rtol=0, atol=1e-12, msg=name)
    features = model.encode_image(batch.pixels, present=batch.present)
    alone = model.encode_image(batch.pixels[:, 0])
    # The second study has its frontal alone: a study of one view is that radiograph.
    torch.testing.assert_close(features.pooled[1], alone.pooled[1])
    assert not torch.allclose(features.pooled[0], alone.pooled[0])
    # Maps are of the current frontal, whatever else was given.
    torch.testing.assert_close(features.tokens, alone.tokens)


def test_scores_and_maps_have_the_contract_s_shapes(folder: Path) -> None:
    model = records.alta(folder)
    image = model.encode_image(torch.rand(3, 1, 16, 16, dtype=torch.float64))
    text = model.encode_prompts(["There is edema", "There is a nodule"])
    score = model.score(image, text)
    assert score.shape == (3, 2)
    assert score.abs().max() <= 3.0 + 1e-9  # a cosine times the initial scale
    assert model.similarity_map(image, text).shape == (3, 2, 4, 4)
    assert isinstance(text, TextFeatures)
    # Words after CLS up to and including [SEP].
    assert text.mask.sum(dim=1).tolist() == [4, 5]
    with torch.no_grad():
        model.log_scale.fill_(50.0)
    assert float(model.scale("log_scale")) == pytest.approx(100.0)


def test_features_of_a_stem_stand_for_its_pixels(folder: Path) -> None:
    model = records.alta(folder)
    batch = records.batch(model.text, range(5))
    assert batch.pixels is not None
    features = model.vision.stem(batch.pixels.flatten(0, 1)).unflatten(0, (5, 4))
    torch.manual_seed(0)
    expected = model.loss(batch)["loss"]
    torch.manual_seed(0)
    cached = Batch(batch.texts, batch.text_ids, batch.positives, batch.pixels, features, batch.present)
    torch.testing.assert_close(model.loss(cached)["loss"], expected)


def test_a_quarter_of_the_patches_and_half_of_the_words_stay(folder: Path) -> None:
    patches, order = hide_patches(torch.arange(196.0).view(1, 196, 1), torch.rand(1, 196), 0.75)
    assert patches.shape == (1, 49, 1)
    assert sorted(order[0].tolist()) == list(range(196))
    assert patches[0, :, 0].tolist() == order[0, :49].tolist()
    text = tiny_text(folder)
    tokens = text.tokenize(["There is no nodule of the left lung", "There is edema"])
    masked, hidden = hide_words(tokens, torch.zeros_like(tokens.ids, dtype=torch.float64), text, 0.5)
    # All but [CLS], [SEP] and padding.
    assert hidden.sum(dim=1).tolist() == [8, 3]
    assert masked.ids[hidden].unique().tolist() == [text.tokenizer.mask_token_id]
    assert torch.equal(masked.ids[~hidden], tokens.ids[~hidden])
    _, none = hide_words(tokens, torch.ones_like(tokens.ids, dtype=torch.float64), text, 0.5)
    assert not none.any()


def test_what_is_hidden_depends_on_seed_and_text_alone(folder: Path) -> None:
    model = records.mrm(folder)
    torch.manual_seed(1)
    together = model.represent(records.batch(model.text, range(5)))
    torch.manual_seed(1)
    alone = model.represent(records.batch(model.text, range(2, 3)))
    for name, rows in alone.items():
        torch.testing.assert_close(rows, together[name][2:3], msg=name)
    torch.manual_seed(2)
    assert not torch.equal(model.represent(records.batch(model.text, range(2, 3)))["mim"], alone["mim"])


def test_bad_input_is_named(folder: Path) -> None:
    model = records.alta(folder)
    pixels = torch.rand(2, 4, 1, 16, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match="study 1 of the batch has no current frontal"):
        model.encode_image(pixels, present=torch.tensor([[True] * 4, [False] * 4]))
    with pytest.raises(ValueError, match="neither radiographs"):
        model.encode_image(pixels)
    with pytest.raises(ValueError, match="give pixels"):
        model.encode_image()
    with pytest.raises(ValueError, match="blank"):
        model.encode_prompts([" "])
    with pytest.raises(ValueError, match="no text"):
        model.encode_prompts([])
    batch = records.batch(model.text, range(2))
    sentences = Batch(batch.texts, batch.text_ids, batch.positives[:1], batch.pixels, present=batch.present)
    with pytest.raises(ValueError, match=r"data\.texts=report"):
        model.loss(sentences)
    with pytest.raises(ValueError, match="restores pixels"):
        model.loss(Batch(batch.texts, batch.text_ids, batch.positives, present=batch.present))


def test_a_report_of_words_that_stay_gives_no_nan(folder: Path) -> None:
    model = records.alta(folder)
    tokens = model.text.tokenize(["xylophone"])  # unknown: nothing that could be hidden
    pixels = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    batch = Batch(tokens, torch.tensor([text_id("xylophone")]), torch.ones(1, 1, dtype=torch.bool), pixels)
    parts = model.loss(batch)
    parts["loss"].backward()
    assert float(parts["mlm"]) == 0.0
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def config(system: str, folder: Path, *more: str) -> Config:
    sizes = "{width: 16, depth: 1, heads: 2, decoder_width: 16, decoder_depth: 1, decoder_heads: 2}"
    settings = [f"system={system}", "vision.resolution=64", f"text.encoder={folder}", "data.input=study"]
    return load_config(None, [*settings, f"model={sizes}", *more])


def test_alta_takes_the_image_towers_of_an_mrm_bundle_and_then_stands_alone(folder: Path, tmp_path: Path) -> None:
    source = config("mrm", folder)
    mrm = registry.build(source)
    bundle = save_bundle(str(tmp_path / "mrm"), mrm, source, {})
    with pytest.raises(ConfigError, match="align it with alta"):
        load_bundle(bundle)
    aligned = config("alta", folder, f"model.mrm={bundle}")
    model = registry.build_zero_shot(aligned)
    pixels = torch.rand(1, 1, 64, 64)
    # In training mode a frozen stem keeps its statistics, so this reading changes nothing.
    assert mrm.train().vision(torch.rand(2, 1, 64, 64)).shape == (2, 17, 16)
    torch.testing.assert_close(model.eval().vision(pixels), mrm.eval().vision(pixels))
    assert isinstance(model, Alta)
    torch.testing.assert_close(model.decoder.state_dict(), mrm.get_submodule("decoder").state_dict())
    exported = save_bundle(str(tmp_path / "alta"), model, aligned, {})
    # The MRM bundle is not needed again.
    (tmp_path / "mrm" / "model.safetensors").unlink()
    again = load_bundle(exported).model
    torch.testing.assert_close(again.encode_image(pixels).pooled, model.encode_image(pixels).pooled)
    with pytest.raises(ConfigError, match=r"model\.mrm is empty"):
        registry.build(config("alta", folder))
    with pytest.raises(ConfigError, match="is no bundle"):
        registry.build(aligned)
    with pytest.raises(ConfigError, match="is a bundle of alta"):
        registry.build(config("alta", folder, f"model.mrm={exported}"))


def test_towers_of_other_sizes_are_refused(folder: Path, tmp_path: Path) -> None:
    source = config("mrm", folder)
    bundle = save_bundle(str(tmp_path / "mrm"), registry.build(source), source, {})
    with pytest.raises(ConfigError, match=r"vision\.blocks\.1.* is absent there"):
        registry.build(config("alta", folder, f"model.mrm={bundle}", "model.depth=2"))


def test_autocast_rounds_no_map_and_no_score(folder: Path) -> None:
    vision = records.vit()
    model = Alta(vision, tiny_text(folder), ImageDecoder(vision, records.SETTINGS, 16), records.SETTINGS).float().eval()
    image = model.encode_image(torch.rand(2, 1, 16, 16))
    text = model.encode_text(model.text.tokenize(["There is edema", "There is no nodule of the left lung"]))
    with torch.autocast("cpu", torch.bfloat16):
        score, maps = model.score(image, text), model.similarity_map(image, text)
    torch.testing.assert_close(score, model.score(image, text), rtol=0, atol=0)
    torch.testing.assert_close(maps, model.similarity_map(image, text), rtol=0, atol=0)
