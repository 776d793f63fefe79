"""CT volumes through the same protocol: scores, peaks inside masks, Dice on voxels, slices in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayzero.alignment import registry
from rayzero.bundle import Bundle
from rayzero.evaluation.inference import InProcess
from rayzero.evaluation.protocols.registry import find_protocol
from rayzero.evaluation.records import Task, from_table, to_table
from rayzero.evaluation.report import write_report
from rayzero.studies.lake import Lake, write_lake
from rayzero.studies.study import Image, Mask, Region, Sentence, Study
from tests.alignment.tiny import tiny_brgsa

FINDINGS = ("cardiomegaly", "lung nodule")


def scan(split: str, index: int, rng: np.random.Generator) -> Study:
    name = f"{split}{index:02d}"
    present = FINDINGS[index % 2]
    hu = rng.normal(-800, 20, size=(12, 16, 16)).astype(np.int16)
    z, y, x = (int(rng.integers(0, side - 4)) for side in hu.shape)
    mask = np.zeros(hu.shape, dtype=bool)
    mask[z : z + 2, y : y + 4, x : x + 4] = True
    mask[z + 1, y, x : x + 5 if x < 11 else x + 4] = True
    hu[mask] = 100
    labels = {finding: int(finding == present) for finding in FINDINGS}
    return Study(
        study_id=name,
        patient_id=name,
        corpus="synthetic",
        split=split,  # type: ignore[arg-type]
        images=(Image.from_array(f"{name}-ct", hu, view="volume", bits=16, spacing_mm=(3.0, 2.0, 2.0)),),
        labels=labels,
        sentences=tuple(
            Sentence(text=f"There is {'' if value else 'no '}{finding}.", status="present", finding=finding)
            for finding, value in labels.items()
        ),
        regions=(Region(image_id=f"{name}-ct", finding=present, phrase=present, mask=Mask.from_array(mask)),),
    )


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    rng = np.random.default_rng(0)
    sizes = {"train": 2, "validation": 8, "test": 10}
    studies = [scan(split, index, rng) for split, count in sizes.items() for index in range(count)]
    return write_lake(str(tmp_path_factory.mktemp("lake")), studies)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    overrides = ["data.volume_spacing_mm=[4,2,2]", "evaluation.bootstrap=20", "evaluation.overlays=4"]
    config = tiny_brgsa(tmp_path_factory.mktemp("encoders"), *overrides)
    return Bundle(registry.build_zero_shot(config).eval(), config, {})


def test_a_volume_is_compared_voxel_by_voxel(bundle: Bundle, lake: Lake) -> None:
    task = Task(tuple((f, f"There is {f}") for f in FINDINGS), ("There is no lung nodule.",), views=("volume",))
    records = InProcess(bundle, 3)(lake, "test", task)
    assert [one.size for one in records] == [(12, 16, 16)] * 10
    studies = {study.study_id: study for study in lake.read(splits=["test"])}
    text = bundle.encode_prompts([f"There is {finding}" for finding in FINDINGS])
    for one in records:
        study, region = studies[one.study_id], one.regions[0]
        pixels, geometry = bundle.prepare(study.images[0])
        image = bundle.encode_images([pixels])
        np.testing.assert_allclose(one.logits, bundle.score(image, text)[0], atol=1e-5)
        values = geometry.restore(bundle.similarity_map(image, text)[0, FINDINGS.index(region.finding)])
        mask = study.regions[0].mask
        assert mask is not None
        x, y, z = region.peak
        assert values[z, y, x] == pytest.approx(values.max(), abs=1e-5)
        assert region.hit == bool(mask.array()[z, y, x])
        assert region.chance == pytest.approx(mask.array().mean())
        assert region.histograms is not None
        assert region.histograms.foreground.sum() == mask.array().sum()


def test_the_report_shows_the_slice_of_the_finding(bundle: Bundle, lake: Lake, tmp_path: Path) -> None:
    result = find_protocol("phantom").run(bundle, lake)
    shown = [region for one in result.scored.images for region in one.regions if region.grid is not None]
    assert shown
    masks = {study.study_id: study.regions[0].mask for study in lake.read(splits=["test"])}
    for one in result.scored.images:
        for region in one.regions:
            if region.grid is not None:
                mask = masks[one.study_id]
                assert mask is not None
                areas = mask.array().sum(axis=(1, 2))
                assert region.section is not None
                assert areas[region.section] == areas.max()
                assert region.picture[:2] == b"\xff\xd8"
                assert region.grid.shape == (16, 16)
    page = Path(write_report(result, str(tmp_path), overlays=4), "report.html").read_text()
    assert "slice " in page
    assert page.count("<figure>") >= 4
    assert from_table(to_table(result.scored.images))[0].size == (12, 16, 16)
