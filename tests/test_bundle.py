"""Bundles: what is saved is what is loaded, and what was altered is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rayzero.alignment import registry
from rayzero.bundle import (
    Bundle,
    BundleError,
    Phrased,
    fingerprint,
    load_bundle,
    read_bundle_card,
    save_bundle,
    update_card,
)
from rayzero.config import load_config
from tests.encoders.tiny import tiny_bert
from tests.toys import toy_study


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundle")
    encoder = tiny_bert(folder / "bert")
    config = registry.resolve(
        load_config(None, [f"text.encoder={encoder}", "vision.resolution=64", "model.heads=2", "model.blocks=1"])
    )
    model = registry.build(config).eval()
    card = {"calibration": {"scale": 2.0, "bias": -1.0}, "map_threshold": 0.5}
    url = save_bundle(str(folder / "bundle"), model, config, card)
    return url, Bundle(model, config, card)


def scores(bundle: Bundle) -> np.ndarray:  # type: ignore[type-arg]
    image = toy_study(3, "test").images[0]
    pixels, _ = bundle.prepare(image)
    features = bundle.encode_images([pixels])
    return bundle.score(features, bundle.encode_prompts(["There is a nodule", "There is edema"]))


def test_a_loaded_bundle_answers_as_the_model_did(original: tuple[str, Bundle]) -> None:
    url, bundle = original
    loaded = load_bundle(url)
    np.testing.assert_array_equal(scores(loaded), scores(bundle))
    assert loaded.config.model == bundle.config.model
    assert loaded.map_threshold == 0.5
    assert loaded.probability(np.array([0.5])) == pytest.approx(0.5)


def test_intervals_come_from_the_card_and_are_none_without(original: tuple[str, Bundle]) -> None:
    model, config = original[1].model, original[1].config
    assert original[1].calibration.interval(np.zeros(3)) is None
    told = {"scale": 2.0, "bias": -1.0, "replicates": [[1.5, -1.2], [2.5, -0.8]]}
    interval = Bundle(model, config, {"calibration": told}).calibration.interval(np.array([[0.0, 4.0]]))
    assert interval is not None
    assert interval.shape == (1, 2, 2)
    assert interval[0, 0] == pytest.approx(1 / (1 + np.exp([1.19, 0.81])))


def test_it_holds_no_pickle_and_needs_no_hub(original: tuple[str, Bundle]) -> None:
    files = [path for path in Path(original[0]).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".yaml", ".txt"}


def test_the_card_can_be_extended(original: tuple[str, Bundle], tmp_path: Path) -> None:
    url = save_bundle(str(tmp_path / "b"), original[1].model, original[1].config, {"map_threshold": 0.1})
    update_card(url, {"map_threshold": 0.9, "metrics": {"auroc": 1}})
    loaded = load_bundle(url)
    assert loaded.map_threshold == 0.9
    assert loaded.card["metrics"] == {"auroc": 1}


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "card.json"])
def test_an_altered_or_missing_file_is_refused(name: str, original: tuple[str, Bundle], tmp_path: Path) -> None:
    url = save_bundle(str(tmp_path / "b"), original[1].model, original[1].config, {})
    path = Path(url) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} does not match its checksum"):
        load_bundle(url)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(url)


def test_no_bundle_and_another_format_are_named(original: tuple[str, Bundle], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        load_bundle(str(tmp_path / "nothing"))
    url = save_bundle(str(tmp_path / "b"), original[1].model, original[1].config, {})
    update_card(url, {"format": 99})
    with pytest.raises(BundleError, match="bundle format 99"):
        load_bundle(url)
    assert json.loads((Path(url) / "card.json").read_text())["system"] == "radzero"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model.safetensors": 3}', '{"card.json": "0"}'])
def test_a_damaged_list_of_checksums_is_refused(text: str, original: tuple[str, Bundle], tmp_path: Path) -> None:
    url = save_bundle(str(tmp_path / "b"), original[1].model, original[1].config, {})
    (Path(url) / "checksums.json").write_text(text)
    with pytest.raises(BundleError, match=r"checksums\.json .*export"):
        load_bundle(url)
    sums = json.loads((Path(original[0]) / "checksums.json").read_text())
    (Path(url) / "checksums.json").write_text(json.dumps({**sums, "../secret": "0"}))
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(url)


def test_a_bundle_replaces_a_bundle_and_nothing_else(original: tuple[str, Bundle], tmp_path: Path) -> None:
    folder = tmp_path / "b"
    url = save_bundle(str(folder), original[1].model, original[1].config, {})
    stale = folder / "tokenizer" / "old.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    sums = json.loads((folder / "checksums.json").read_text())
    (folder / "checksums.json").write_text(json.dumps({**sums, "tokenizer/old.json": "0"}))
    save_bundle(url, original[1].model, original[1].config, {})
    assert not stale.exists()
    load_bundle(url)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(BundleError, match="holds files and is no bundle"):
        save_bundle(str(tmp_path / "photos"), original[1].model, original[1].config, {})


def test_a_prompt_scores_the_mean_of_its_phrasings() -> None:
    phrased = Phrased(["a", "b", "c"], np.array([0, 2]))
    np.testing.assert_allclose(phrased.mean(np.array([[1.0, 3.0, 7.0]], dtype=np.float32)), [[2.0, 7.0]])


def test_the_checksum_covers_the_card_and_the_fingerprint_what_decides_the_logits(
    original: tuple[str, Bundle], tmp_path: Path
) -> None:
    url = shutil.copytree(original[0], tmp_path / "bundle").as_posix()
    kept, before = fingerprint(url), load_bundle(url).checksum
    assert before == load_bundle(original[0]).checksum == read_bundle_card(url)[2]
    update_card(url, {"calibration": {"scale": 3.0, "bias": 0.0}})
    assert load_bundle(url).checksum == read_bundle_card(url)[2] != before
    assert fingerprint(url) == kept
