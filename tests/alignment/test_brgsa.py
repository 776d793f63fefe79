"""BrgSA: the published pooling, losses, scores and maps, and what the published code gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rayzero.alignment import registry
from rayzero.alignment.base import Batch
from rayzero.alignment.brgsa import BrgSA, BrgSASettings, KnowledgeBank, random_crop
from rayzero.bundle import load_bundle, save_bundle
from rayzero.config import Config, ConfigError, load_config
from rayzero.encoders.volume import ViT3D
from rayzero.reports.extraction.styles import NORMAL
from rayzero.studies.examples import examples_of
from rayzero.studies.study import Image, Sentence, Study
from rayzero.training.batches import collate, text_id
from tests.encoders.test_volume import TINY, definition
from tests.encoders.tiny import TinyVision, tiny_bert, tiny_text

SHAPE = (6, 8, 16)
CAPTIONS = ("There is a nodule", "There is edema There is no fracture", "There is a mass of the left lung")


def build(folder: Path, **settings: object) -> BrgSA:
    torch.manual_seed(0)
    tiny_bert(folder)
    values = {"width": 12, "bank_size": 20, "text_layers": 2, **settings}
    vision = ViT3D(TINY, SHAPE, normalised=True)
    return BrgSA(vision, tiny_text(folder), BrgSASettings.model_validate(values)).double().eval()


def volumes(count: int) -> Tensor:
    return torch.rand(count, 1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1


def batch(model: BrgSA, captions: Sequence[str] = CAPTIONS) -> Batch:
    return Batch(
        texts=model.text.tokenize(list(captions)),
        text_ids=torch.tensor([text_id(one) for one in captions]),
        positives=torch.tensor([[one == other for other in captions] for one in captions]),
        pixels=volumes(len(captions)),
    )


def test_text_pooling_is_the_mean_over_all_slots_of_four_summed_layers(tmp_path: Path) -> None:
    model = build(tmp_path)
    tokens = model.text.tokenize(list(CAPTIONS))
    layers = model.text.network(tokens.ids, attention_mask=tokens.mask, output_hidden_states=True).hidden_states[1:]
    expected = []
    for row, words in enumerate(tokens.mask.sum(dim=1).tolist()):
        # Word pieces are grouped or not: a sum does not tell. What follows [SEP] is zero, and counted.
        slots = [sum(layer[row, i] for layer in layers) for i in range(words)]
        expected.append(sum(slots) / model.text.max_tokens)
    published = model.text_projection(torch.stack(expected))
    torch.testing.assert_close(model.encode_text(tokens).pooled, published, rtol=1e-12, atol=1e-14)


def test_mean_pooling_does_not_depend_on_the_length_and_the_sum_does(tmp_path: Path) -> None:
    tokens = build(tmp_path).text.tokenize(["There is edema"])
    norms = {}
    for pooling in ("sum", "mean"):
        model = build(tmp_path, pooling=pooling)
        torch.nn.init.zeros_(model.text_projection.bias)
        norms[pooling] = model.encode_text(tokens).pooled.norm().item()
    assert norms["sum"] / norms["mean"] == pytest.approx(5 / 16)  # [CLS] there is edema [SEP], of 16 slots


def test_the_loss_is_the_published_one(tmp_path: Path) -> None:
    model = build(tmp_path)
    rows = model.represent(batch(model))
    bank = model.bank.rows
    v, t = rows["image"], rows["text"]
    v_bank, t_bank = (torch.softmax(x @ bank.T, dim=1) @ bank for x in (v, t))
    torch.testing.assert_close(rows["bridged_image"], v_bank)
    target = torch.arange(len(v))

    def both_directions(left: Tensor, right: Tensor) -> Tensor:
        scores = 10 * F.normalize(left, dim=1) @ F.normalize(right, dim=1).T
        return F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)

    mse = F.mse_loss(v_bank, v) + F.mse_loss(t_bank, t)
    expected = both_directions(v, t) + 0.5 * mse + both_directions(v_bank, t_bank)
    got = model.loss(batch(model))
    torch.testing.assert_close(got["loss"], expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(got["reconstruction"], mse.detach(), rtol=1e-12, atol=1e-14)


def test_a_repeated_caption_is_no_negative(tmp_path: Path) -> None:
    model = build(tmp_path)
    repeated = batch(model, (*CAPTIONS, CAPTIONS[0]))
    rows = model.represent(repeated)
    scores = 10 * F.normalize(rows["image"], dim=1) @ F.normalize(rows["text"][:3], dim=1).T
    # Image direction: three distinct captions. Text direction: the other image of the caption is left out.
    pairs = [(0, 0), (1, 1), (2, 2), (3, 0)]
    images = sum(-scores[i].log_softmax(dim=0)[t] for i, t in pairs)
    rivals = {0: [1, 2], 1: [0, 2, 3], 2: [0, 1, 3], 3: [1, 2]}
    texts = sum(torch.logsumexp(scores[[i, *rivals[i]], t], dim=0) - scores[i, t] for i, t in pairs)
    torch.testing.assert_close(model.loss(repeated)["alignment"], ((images + texts) / 4).detach())


def test_every_parameter_learns(tmp_path: Path) -> None:
    model = build(tmp_path)
    model.loss(batch(model))["loss"].backward()
    named = dict(model.named_parameters())
    # A word or place that no text of this batch has gets zeros; nothing gets no gradient at all.
    assert not [name for name, parameter in named.items() if parameter.grad is None]
    assert "vision.positions" not in named


@pytest.mark.parametrize("pairing", ["direct", "image", "text", "both", "published"])
def test_scores_compare_the_named_vectors(pairing: str, tmp_path: Path) -> None:
    model = build(tmp_path, pairing=pairing)
    image, text = model.encode_image(volumes(2)), model.encode_prompts(list(CAPTIONS))
    sides = {"direct": "vt", "image": "Vt", "text": "vT", "both": "VT"}
    vectors = {"v": image.pooled, "V": model.bank(image.pooled), "t": text.pooled, "T": model.bank(text.pooled)}

    def cosine(pair: str) -> Tensor:
        return F.cosine_similarity(vectors[pair[0]][:, None], vectors[pair[1]][None], dim=-1)

    expected = cosine(sides[pairing]) if pairing in sides else (cosine("vt") + cosine("Vt")) / 2
    torch.testing.assert_close(model.score(image, text), 10 * expected)


def test_the_bank_starts_with_orthonormal_columns() -> None:
    rows = KnowledgeBank(40, 12).rows
    torch.testing.assert_close(rows.T @ rows, torch.eye(12), rtol=0, atol=1e-5)
    with torch.device("meta"):
        assert sum(p.numel() for p in KnowledgeBank(2048, 768).parameters()) == 1_572_864


def test_maps_keep_the_axes(tmp_path: Path) -> None:
    model = build(tmp_path)
    image, text = model.encode_image(volumes(2)), model.encode_prompts(list(CAPTIONS))
    grid = model.similarity_map(image, text)
    assert grid.shape == (2, 3, 3, 2, 4)
    z, y, x = 2, 1, 3
    token = image.tokens[1, (z * 2 + y) * 4 + x]
    torch.testing.assert_close(grid[1, 2, z, y, x], 10 * F.cosine_similarity(token, text.pooled[2], dim=0))


def test_rollout_maps_are_of_the_score(tmp_path: Path) -> None:
    model = build(tmp_path)
    text = model.encode_prompts(list(CAPTIONS))
    maps = model.rollout_map(text, volumes(2))
    assert maps.shape == (2, 3, 3, 2, 4)
    assert bool((maps >= 0).all())
    torch.testing.assert_close(maps.flatten(2).amax(dim=-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(model.rollout_map(text.rows(slice(1, 2)), volumes(2)), maps[:, 1:2])


def test_no_text_gives_no_column(tmp_path: Path) -> None:
    model = build(tmp_path, pairing="both")
    image, none = model.encode_image(volumes(2)), model.encode_prompts([CAPTIONS[0]]).rows(slice(0, 0))
    assert model.score(image, none).shape == (2, 0)
    assert model.similarity_map(image, none).shape == (2, 0, 3, 2, 4)
    assert model.rollout_map(none, volumes(2)).shape == (2, 0, 3, 2, 4)
    with pytest.raises(ValueError, match="no text was given"):
        model.encode_prompts([])


def test_one_example_has_a_loss(tmp_path: Path) -> None:
    model = build(tmp_path)
    losses = model.loss(batch(model, CAPTIONS[:1]))
    losses["loss"].backward()
    assert float(losses["alignment"]) == 0
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_air_and_vectors_of_zero_give_numbers(tmp_path: Path) -> None:
    model = build(tmp_path)
    for layer in (model.image_projection, model.text_projection):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    loss = model.loss(batch(model))["loss"]
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_training_crops_each_volume_alone(tmp_path: Path) -> None:
    numbered = torch.arange(6 * 8 * 16, dtype=torch.float64).view(1, 1, *SHAPE).expand(8, -1, -1, -1, -1)
    torch.manual_seed(0)
    boxes = random_crop(numbered, (4, 8, 8))
    assert boxes.shape == (8, 1, 4, 8, 8)
    corners = {int(box[0, 0, 0, 0]) for box in boxes}
    assert len(corners) > 2
    z, x = divmod(int(boxes[3, 0, 0, 0, 0]), 8 * 16)
    torch.testing.assert_close(boxes[3, 0], numbered[3, 0, z : z + 4, :, x : x + 8])
    with pytest.raises(ValueError, match=r"model\.crop=\[8, 8, 8\] is larger"):
        random_crop(numbered, (8, 8, 8))
    model = build(tmp_path, crop=(4, 8, 8))
    whole = model.represent(batch(model))["image"]
    torch.testing.assert_close(whole, model.encode_image(volumes(3)).pooled)
    assert not torch.allclose(model.train().represent(batch(model))["image"], whole)


def test_blocks_on_another_encoder_and_cached_features(tmp_path: Path) -> None:
    config = registry.resolve(config_of(tmp_path, "vision.encoder=efficientnet-lite0", "model.blocks=1"))
    model = registry.build_zero_shot(config).eval()
    pixels = torch.rand(2, 1, 6, 64, 64)
    features = model.vision(pixels)
    direct, cached = model.encode_image(pixels), model.encode_image(features=features)
    torch.testing.assert_close(direct.pooled, cached.pooled)
    text = model.encode_prompts(["There is edema"])
    assert model.similarity_map(cached, text).shape == (2, 1, 2, 4, 4)
    assert isinstance(model, BrgSA)
    maps = model.rollout_map(text, features=features)
    torch.testing.assert_close(maps, model.rollout_map(text, pixels))


@pytest.mark.parametrize("encoder", ["efficientnet-lite0", "vit3d"])
def test_a_bundle_answers_as_the_model_did(encoder: str, tmp_path: Path) -> None:
    name = definition(tmp_path / "vit") if encoder == "vit3d" else encoder
    blocks = "model.blocks=0" if encoder == "vit3d" else "model.blocks=1"
    config = registry.resolve(config_of(tmp_path, f"vision.encoder={name}", "vision.normalised=true", blocks))
    model = registry.build_zero_shot(config).eval()
    loaded = load_bundle(save_bundle(str(tmp_path / "bundle"), model, config, {})).model
    pixels, prompts = torch.rand(1, 1, 6, 64, 64), ["There is a nodule", "There is edema"]
    with torch.inference_mode():
        expected = model.score(model.encode_image(pixels), model.encode_prompts(prompts))
        torch.testing.assert_close(loaded.score(loaded.encode_image(pixels), loaded.encode_prompts(prompts)), expected)


def test_a_lake_volume_becomes_an_example_and_a_batch(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, "data.volume_spacing_mm=[2.0,1.0,1.0]", "data.volume_shape=[6,8,16]", "data.texts=caption"
    )
    hu = np.full((6, 8, 16), -1000, np.int16)
    hu[2, 5, 7] = 1000
    image = Image.from_array("s/ct", hu, view="volume", bits=16, spacing_mm=(2.0, 1.0, 1.0))
    film = Image.from_array("s/pa", np.zeros((8, 8), np.uint8), view="frontal", bits=8)
    said = (Sentence(text="There is edema", status="present", finding="edema"),)
    study = Study(study_id="s", patient_id="p", corpus="toy", split="train", images=(film, image), sentences=said)
    examples = examples_of([study], config.data, 64, lambda _: None)
    made = collate(examples, tiny_text(tmp_path / "bert"), config.data, cached=False)
    assert made.pixels is not None
    assert made.pixels.shape == (1, 1, 6, 8, 16)
    assert made.pixels[0, 0].gt(0).nonzero().tolist() == [[2, 5, 7]]
    assert bool(torch.isfinite(build(tmp_path / "model").float().loss(made)["loss"]))
    absent = Sentence(text="There is no mass", status="absent", finding="mass")
    present = config.data.model_copy(update={"statuses": ("present",)})
    for sentences, kept in (((*said, absent), ["There is edema"]), ((absent,), [NORMAL.text])):
        row = examples_of([replace(study, sentences=sentences)], present, 64, lambda _: None)
        assert row.column("sentences").to_pylist() == [kept]
    silent = examples_of([replace(study, sentences=())], config.data, 64, lambda _: None)
    with pytest.raises(ValueError, match="study s has no caption to align with"):
        collate(silent, tiny_text(tmp_path / "bert"), config.data, cached=False)


def config_of(folder: Path, *overrides: str) -> Config:
    text = tiny_bert(folder / "bert")
    small = ["model.width=12", "model.heads=2", "model.bank_size=8", "model.text_layers=2"]
    data = ["system=brgsa", "data.input=volume", "data.volume_shape=[6,64,64]", f"text.encoder={text}"]
    return load_config(None, [*data, *small, *overrides])


def test_what_does_not_fit_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"brgsa reads volume; set data\.input so"):
        registry.resolve(config_of(tmp_path, "data.input=radiograph"))
    with pytest.raises(ConfigError, match=r"model\.blocks=0 needs a 3-D ViT"):
        registry.build(config_of(tmp_path))
    with pytest.raises(ConfigError, match=r"model\.crop needs vision\.cache_features=false"):
        registry.build(config_of(tmp_path, "model.crop=[4,64,64]", "vision.cache_features=true", "model.blocks=1"))
    encoder = definition(tmp_path / "vit")
    frozen = [f"vision.encoder={encoder}", "vision.frozen=true"]
    with pytest.raises(ConfigError, match=r"model\.text_layers=3: this text encoder has 2 layers"):
        registry.build(config_of(tmp_path, *frozen, "model.text_layers=3"))
    with pytest.raises(ConfigError, match="needs a 3-D ViT"):
        BrgSA(TinyVision(), tiny_text(tmp_path / "bert"), BrgSASettings())


@pytest.mark.parametrize("given", ["nothing", "both", "present", "shape"])
def test_images_that_cannot_be_read_are_named(given: str, tmp_path: Path) -> None:
    model = build(tmp_path)
    calls = {
        "nothing": ({}, "either as pixels or as cached features"),
        "both": ({"pixels": volumes(1), "features": volumes(1)}, "either as pixels or as cached features"),
        "present": ({"pixels": volumes(1), "present": torch.ones(1, 4)}, "no views"),
        "shape": ({"pixels": volumes(1)[:, :, :4]}, r"16 patches for the grid \(3, 2, 4\)"),
    }
    arguments, message = calls[given]
    with pytest.raises(ValueError, match=message):
        model.encode_image(**arguments)  # type: ignore[arg-type]


def test_autocast_rounds_no_map_and_no_score(tmp_path: Path) -> None:
    model = build(tmp_path, pairing="both").float()
    image = model.encode_image(volumes(2).float())
    text = model.encode_text(model.text.tokenize(list(CAPTIONS)))
    with torch.autocast("cpu", torch.bfloat16):
        score, maps = model.score(image, text), model.similarity_map(image, text)
    torch.testing.assert_close(score, model.score(image, text), rtol=0, atol=0)
    torch.testing.assert_close(maps, model.similarity_map(image, text), rtol=0, atol=0)
