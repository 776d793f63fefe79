from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from rayzero.bundle import Bundle
from rayzero.evaluation.metrics.bootstrap import Bootstrap
from rayzero.evaluation.metrics.semantic import (
    BACKGROUND_THRESHOLDS,
    Assigned,
    assign,
    best_background,
    iou_curve,
    iou_estimates,
)
from rayzero.evaluation.protocols.registry import find_protocol
from rayzero.evaluation.result import EvaluationResult
from rayzero.studies.lake import Lake
from tests.evaluation.lakes import FINDINGS

_NAMES = ["a", "b", "c", "background"]


def _scene(seed: int, overlapping: bool) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Maps (3, H, W), some of whose values are thresholds or ties, and masks of some of the findings."""
    rng = np.random.default_rng(seed)
    maps = rng.choice([*BACKGROUND_THRESHOLDS[::9], -0.3, 0.4, 2.5], (3, 6, 7)).astype(np.float32)
    truth = rng.integers(0, 5, (6, 7))
    masks = {place: truth == place for place in rng.permutation(3)[: rng.integers(1, 4)]}
    if overlapping:
        masks = {place: mask | (rng.random((6, 7)) < 0.3) for place, mask in masks.items()}
    return maps, masks


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0, 20, 49, 50, 51, 80, 100]))
def test_iou_is_that_of_every_pixel_counted_by_itself(seed: int, overlapping: bool, column: int) -> None:
    scenes = [_scene(seed, overlapping), _scene(seed + 1, overlapping)]
    curve = iou_curve([assign(maps, masks, (6, 7)) for maps, masks in scenes])
    hit, union = np.zeros(4), np.zeros(4)
    size = np.zeros(4)
    for maps, masks in scenes:
        truth = [masks.get(place, np.zeros((6, 7), dtype=bool)) for place in range(3)]
        truth.append(~np.logical_or.reduce(truth))
        for y, x in np.ndindex(6, 7):
            own = int(maps[:, y, x].argmax()) if maps[:, y, x].max() > BACKGROUND_THRESHOLDS[column] else 3
            for place in range(4):
                hit[place] += own == place and truth[place][y, x]
                union[place] += own == place or truth[place][y, x]
                size[place] += truth[place][y, x]
    expected = np.where(size > 0, hit / np.maximum(union, 1), np.nan)
    np.testing.assert_allclose(curve[:, column], expected)


def test_one_class_per_pixel_is_the_jaccard_index_of_scikit_learn() -> None:
    scenes = [_scene(seed, overlapping=False) for seed in range(6)]
    at = 50
    predicted, truth = [], []
    for maps, masks in scenes:
        predicted.append(np.where(maps.max(axis=0) > BACKGROUND_THRESHOLDS[at], maps.argmax(axis=0), 3).ravel())
        label = np.full((6, 7), 3)
        for place, mask in masks.items():
            label[mask] = place
        truth.append(label.ravel())
    images = [assign(maps, masks, (6, 7)) for maps, masks in scenes]
    patients = ["p", "p", "q", "r", "s", "t"]
    found = iou_estimates(images, _NAMES, patients, Bootstrap(patients, 200), at)
    expected = jaccard_score(np.concatenate(truth), np.concatenate(predicted), average=None)
    assert [found[name].value for name in _NAMES] == pytest.approx(expected)
    assert all(one.low <= one.value <= one.high for one in found.values())
    assert best_background(iou_curve(images)) == int(np.nanmean(iou_curve(images)[:3], axis=0).argmax())


def test_a_finding_without_a_pixel_is_not_in_the_mean() -> None:
    maps = np.full((2, 3, 3), -1.0, dtype=np.float32)
    mask = np.zeros((3, 3), dtype=bool)
    mask[0] = True
    maps[0][mask] = 1.0
    one = assign(maps, {0: mask}, (3, 3))
    assert np.isnan(iou_curve([one])[1]).all()
    at = int(np.searchsorted(BACKGROUND_THRESHOLDS, 0.0))
    found = iou_estimates([one], ["a", "b", "background"], ["p"], Bootstrap(["p"], 5), at)
    assert {name: value.value for name, value in found.items()} == {"a": 1.0, "background": 1.0}
    again = Assigned.from_bytes(one.to_bytes())
    assert all(np.array_equal(getattr(one, name), getattr(again, name)) for name in ("hits", "predicted", "size"))


@pytest.fixture(scope="module")
def result(bundle: Bundle, lake: Lake) -> EvaluationResult:
    return find_protocol("phantom").run(bundle, lake)


def test_the_phantom_protocol_segments_among_its_findings(result: EvaluationResult, bundle: Bundle, lake: Lake) -> None:
    part = result.semantic
    assert part is not None
    text = bundle.encode_prompts([f"There is {name}" for name in sorted(FINDINGS)])
    hit, union = np.zeros(3), np.zeros(3)
    for study in lake.read(splits=["test"]):
        image = study.image("frontal")
        assert image is not None
        pixels, geometry = bundle.prepare(image)
        grids = bundle.similarity_map(bundle.encode_images([pixels]), text)[0]
        maps = np.stack([geometry.restore(grid) for grid in grids])
        own = np.where(maps.max(axis=0) > part.threshold, maps.argmax(axis=0), 3)
        for place, name in enumerate(sorted(FINDINGS)):
            masks = [r.mask.array() for r in study.regions if r.finding == name and r.mask is not None]
            mask = masks[0] if masks else np.zeros(own.shape, dtype=bool)
            hit[place] += ((own == place) & mask).sum()
            union[place] += ((own == place) | mask).sum()
    assert [part.per_finding[name].value for name in sorted(FINDINGS)] == pytest.approx(hit / union, abs=0.01)
    assert part.miou.value == pytest.approx(np.mean(hit / union), abs=0.01)
    assert part.oracle_miou >= part.miou.value
    out = result.to_json()
    assert out["headline"]["semantic_segmentation.miou"]["value"] == part.miou.value
    assert out["semantic_segmentation"]["threshold"]["chosen_on"] == "validation"
