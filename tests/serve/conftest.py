"""An untrained model and a folder of examples: what the server does does not depend on what the model learnt."""

from __future__ import annotations

import io
import json
from pathlib import Path

import data_store
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from rayzero.alignment import registry
from rayzero.bundle import save_bundle
from rayzero.config import Config, VisionConfig

FILMS = Path(data_store.__file__).parent / "data"
VOCABULARY = ["pneumonia", "pleural effusion", "nodule"]


def png(seed: int = 0, height: int = 90, width: int = 70) -> bytes:
    """A PNG of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 5), dtype=np.uint8)
    file = io.BytesIO()
    PillowImage.fromarray(noise).resize((width, height), PillowImage.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def film() -> bytes:
    """A real chest film, uncompressed."""
    return (FILMS / "RG1_UNCR.dcm").read_bytes()


@pytest.fixture(scope="session")
def film_j2k() -> bytes:
    """The same film, JPEG 2000 lossless."""
    return (FILMS / "RG1_J2KR.dcm").read_bytes()


@pytest.fixture(scope="session")
def bundle_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained RadZero bundle."""
    torch.manual_seed(0)
    config = registry.resolve(Config(vision=VisionConfig(resolution=128)))
    card = {
        "vocabulary": VOCABULARY,
        "calibration": {"scale": 2.0, "bias": -0.5},
        "map_threshold": 0.1,
        "metrics": {"classification": {"macro_auroc": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}}},
    }
    return save_bundle(str(tmp_path_factory.mktemp("bundle") / "radzero"), registry.build(config), config, card)


@pytest.fixture(scope="session")
def examples_folder(tmp_path_factory: pytest.TempPathFactory, film: bytes) -> str:
    """Three examples: the film and two synthetic images, with sentences."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "film.dcm").write_bytes(film)
    entries: list[dict[str, object]] = [
        {"id": "film", "file": "film.dcm", "title": "A film", "sentences": ["There is no nodule."]}
    ]
    for seed in (1, 2):
        (folder / f"{seed}.png").write_bytes(png(seed))
        sentences = ["There is a nodule.", f"There is finding {seed}."]
        suggested = ["nodule", "pleural effusion", "pneumonia"]
        entry = {"id": f"noise-{seed}", "file": f"{seed}.png", "title": f"Noise {seed}", "suggested_prompts": suggested}
        entries.append({**entry, "sentences": sentences})
    (folder / "examples.json").write_text(json.dumps(entries))
    return str(folder)
