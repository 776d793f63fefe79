"""Settings: presets, overrides, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.command import preset_config, preset_names
from rayzero.alignment import registry
from rayzero.config import Config, ConfigError, EvaluationConfig, dump_yaml, load_config, override, parse_config


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_and_survive_a_round_trip(name: str) -> None:
    config = registry.resolve(preset_config(name, []))
    assert parse_config(dump_yaml(config)) == config


def test_the_published_recipe_is_published_to_the_number() -> None:
    config = registry.resolve(preset_config("radzero", []))
    training = config.training
    assert (config.vision.encoder, config.vision.resolution) == ("StanfordAIMI/dinov2-base-xray-224", 518)
    assert (training.batch_size, training.workers, training.lr, training.weight_decay) == (256, 4, 1e-4, 0.05)
    assert (training.warmup_steps, training.gradient_clip, training.schedule) == (50, 1.0, "cosine")
    assert config.model["blocks"] == 2
    assert config.model["temperature"] == 0.07


def test_augmentation_is_each_recipe_s_own() -> None:
    """RadZero spec, section 3; CARZero spec, section 6; ALTA spec, section 1; BrgSA spec, section 1."""
    found = {name: preset_config(name, []).data.augmentation.changed for name in preset_names()}
    colour: dict[str, Any] = {"brightness": [0.8, 1.2], "contrast": [0.8, 1.2]}
    published: dict[str, dict[str, Any]] = {
        "carzero": {
            "crop": 224 / 256, "flip": 0.3, "rotation": 30.0, "translation": 0.1, "scale": [0.9, 1.1], **colour
        },
        "alta": {"rotation": 20.0, "shear": 10.0, "translation": 0.1, "scale": [0.95, 1.05], **colour},
    }  # fmt: skip
    assert found == {name: published.get(name, {}) for name in found}
    assert preset_config("carzero", []).vision.resolution == 224
    # What tests see of a film (section 1): the others see all of it.
    assert {name: preset_config(name, []).data.crop for name in found} == dict.fromkeys(found, 1.0) | {"carzero": 0.875}
    # Of volumes, BrgSA's own crop.
    assert preset_config("brgsa", []).model["crop"] == [112, 224, 224]


def test_overrides_are_dotted_and_typed() -> None:
    config = load_config(None, ["training.steps=7", "data.views=[frontal, lateral]", "training.lr=3e-4"])
    assert config.training.steps == 7
    assert config.data.views == ("frontal", "lateral")
    assert override(config, {"training.steps": 9}).training.steps == 9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.worker=3"], "unknown setting 'training.worker': did you mean 'workers'?"),
        (["trainning.workers=3"], "unknown setting 'trainning': did you mean 'training'?"),
        (["training.workers=three"], "training.workers='three'"),
        (["training.workers=3"], "batch_size=32 is not a multiple of training.workers=3; try 30"),
        (["vision.cache_features=true", "vision.frozen=false"], "vision.cache_features needs vision.frozen=true"),
        (["evaluation.prompt=There is"], "must hold one {}"),
        (["evaluation.ensemble=[There is]"], "must hold one {}"),
        (["training.workers"], "is not of the form key=value"),
        (["--workers=3"], "is not of the form key=value"),
        (["name=../../etc"], "name='../../etc'"),
        (["training={"], "not valid settings"),
        (["data.views=[]"], "data.views=[]: "),
        (["data.statuses=[]"], "data.statuses=[]: "),
        (["training.betas=[0.9,1.5]"], "training.betas.1=1.5: "),
        (["data.augmentation.flop=0.5"], "unknown setting 'data.augmentation.flop': did you mean 'flip'?"),
        (["data.augmentation.scale=[1.1,0.9]"], "data.augmentation.scale=[1.1, 0.9] falls"),
        (["data.augmentation.flip=0.5", "vision.cache_features=true"], "flip: needs vision.cache_features=false"),
        (["data.augmentation.crop=1.2"], "data.augmentation.crop=1.2: "),
        (["data.augmentation.rotation=9", "data.input=volume"], "data.augmentation.rotation: for radiographs alone"),
        (["data.crop=0.9", "data.input=volume"], "data.crop: for radiographs alone"),
        (["data.crop=1.5"], "data.crop=1.5: "),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert message in str(caught.value)


def test_settings_of_the_system_are_checked_by_the_same_rules() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'model.tempature': did you mean 'temperature'"):
        registry.resolve(load_config(None, ["model.tempature=0.1"]))
    with pytest.raises(ConfigError, match=r"model.temperature=3"):
        registry.resolve(load_config(None, ["model.temperature=3"]))
    with pytest.raises(ConfigError, match=r"unknown system='radzer': did you mean 'radzero'"):
        registry.resolve(load_config(None, ["system=radzer"]))


def test_a_missing_or_broken_preset_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'quickstrt': did you mean 'quickstart'"):
        preset_config("quickstrt", [])
    with pytest.raises(ConfigError, match="no preset file"):
        preset_config(str(tmp_path / "none.yaml"), [])
    broken = tmp_path / "broken.yaml"
    broken.write_text("training: [1, 2\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid settings"):
        preset_config(str(broken), [])
    broken.write_text("- 1\n")
    with pytest.raises(ConfigError):
        preset_config(str(broken), [])


@pytest.mark.parametrize("text", ["training: [1, 2\n", "- 1\n", "just words", "training:\n  worker: 3\n"])
def test_damaged_saved_settings_are_one_message(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_config(text)


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().name = "other"  # type: ignore[misc]


def test_a_prompt_is_phrased_in_the_ensemble_too() -> None:
    settings = EvaluationConfig(ensemble=("Chest film with {}.",))
    assert settings.phrasings("There is a nodule") == ["There is a nodule", "Chest film with a nodule."]
    assert settings.phrasings("No nodule is seen") == ["No nodule is seen"]
    assert EvaluationConfig().phrasings("There is edema") == ["There is edema"]
