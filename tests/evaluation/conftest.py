from __future__ import annotations

import pytest

from rayzero.alignment import registry
from rayzero.bundle import Bundle, load_bundle, save_bundle
from rayzero.config import load_config
from rayzero.studies.lake import Lake
from tests.evaluation.lakes import make_lake


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="session")
def bundle_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained RadZero."""
    overrides = ["vision.resolution=64", "model.heads=6", "model.blocks=1", "evaluation.bootstrap=50"]
    config = load_config(None, [*overrides, "evaluation.batch_size=8", "evaluation.overlays=4"])
    return save_bundle(str(tmp_path_factory.mktemp("bundle")), registry.build(config), config, {})


@pytest.fixture(scope="session")
def bundle(bundle_url: str) -> Bundle:
    return load_bundle(bundle_url)
