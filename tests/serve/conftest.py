"""An untrained model and a folder of examples: what the server does does not depend on what the model learnt."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import data_store
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from rayzero.alignment import registry
from rayzero.bundle import save_bundle
from rayzero.config import Config, VisionConfig, load_config
from rayzero.phantom import CtVolume, render_ct, sample_patient
from rayzero.phantom.dicom import write_ct_series
from rayzero.phantom.files import write_nifti
from rayzero.studies.sandbox import Sandbox
from tests.alignment.tiny import tiny_brgsa
from tests.encoders.tiny import tiny_bert

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
        "calibration": {"scale": 2.0, "bias": -0.5, "replicates": [[1.8, -0.7], [1.9, -0.4], [2.1, -0.6], [2.2, -0.3]]},
        "map_threshold": 0.1,
        "metrics": {"classification": {"macro_auroc": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}}},
    }
    return save_bundle(str(tmp_path_factory.mktemp("bundle") / "radzero"), registry.build(config), config, card)


@pytest.fixture(scope="session")
def reader() -> Iterator[Sandbox]:
    """Confined reading processes that all tests share: each takes a second to start."""
    with Sandbox(workers=2) as made:
        yield made


@pytest.fixture(scope="session")
def ct() -> CtVolume:
    """A simulated chest CT, coarse."""
    return render_ct(sample_patient(0, 0, "test").studies[0], 8.0)


@pytest.fixture(scope="session")
def ct_nifti(ct: CtVolume, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """That CT as NIfTI."""
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    write_nifti(path, ct)
    return path.read_bytes()


@pytest.fixture(scope="session")
def ct_series(ct: CtVolume, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """That CT as a zip of its DICOM series."""
    patient = sample_patient(0, 0, "test")
    folder = tmp_path_factory.mktemp("series")
    write_ct_series(folder, patient, patient.studies[0], ct)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.dcm")):
            archive.write(path, f"DOE^JANE/{path.name}")
    return file.getvalue()


@pytest.fixture(scope="session")
def volume_bundle_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained BrgSA bundle that reads small volumes, not calibrated."""
    return small_volume_bundle(tmp_path_factory.mktemp("brgsa"))


def small_volume_bundle(folder: Path) -> str:
    """Write that bundle below ``folder``."""
    config = tiny_brgsa(folder, "data.volume_spacing_mm=[30,20,20]")
    return save_bundle(str(folder / "bundle"), registry.build(config), config, {"vocabulary": ["nodule", "effusion"]})


@pytest.fixture(scope="session")
def study_bundle_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained ALTA bundle that reads a frontal film with its lateral and prior frontal ones."""
    folder = tmp_path_factory.mktemp("alta")
    sizes = "{width: 16, depth: 1, heads: 2, decoder_width: 16, decoder_depth: 1, decoder_heads: 2}"
    settings = ["vision.resolution=64", f"text.encoder={tiny_bert(folder / 'bert')}", "data.input=study"]
    settings += [f"model={sizes}", "data.companions=[lateral,prior_frontal]"]
    torch.manual_seed(0)
    mrm = load_config(None, ["system=mrm", *settings])
    images = save_bundle(str(folder / "mrm"), registry.build(mrm), mrm, {})
    config = registry.resolve(load_config(None, ["system=alta", *settings, f"model.mrm={images}"]))
    return save_bundle(str(folder / "bundle"), registry.build_zero_shot(config), config, {})


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
