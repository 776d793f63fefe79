from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from rayzero.evaluation.metrics import segmentation
from rayzero.evaluation.metrics.segmentation import (
    CUTS,
    PROBABILITIES,
    THRESHOLDS,
    dice_at_probabilities,
    dice_at_thresholds,
    empty_at_probabilities,
    empty_at_thresholds,
    histograms,
    iou_at_probabilities,
    pixel_auroc,
    whole_image_dice,
)
from rayzero.metrics.grounding import box_share, boxes_mask, contrast, first_peak, inside_any


@pytest.mark.parametrize(
    ("point", "hit"),
    [
        ((2, 3), True),
        ((5, 3), True),
        ((6, 3), True),
        ((7, 3), False),
        ((1, 3), False),
        ((2, 8), True),
        ((2, 9), False),
        ((2, 2), False),
    ],
)
def test_both_edges_of_a_box_are_inside_as_in_published_code(point: tuple[int, int], hit: bool) -> None:
    assert inside_any(point, [(2.0, 3.0, 6.0, 8.0)]) is hit


def test_any_box_of_the_finding_counts() -> None:
    assert inside_any((9, 9), [(0, 0, 2, 2), (9, 9, 10, 10)])
    assert not inside_any((9, 9), [])


def test_the_first_of_equal_peaks_in_row_order_counts() -> None:
    values = np.zeros((3, 4))
    values[1, 2] = values[1, 3] = values[2, 0] = 1.0
    assert first_peak(values) == (2, 1)


def test_chance_is_the_share_of_pixels_that_would_hit() -> None:
    boxes = [(0.5, 0.0, 3.0, 2.0), (2.0, 1.0, 9.0, 3.5)]
    hits = [inside_any((x, y), boxes) for y in range(5) for x in range(6)]
    assert box_share(boxes, 5, 6) == pytest.approx(np.mean(hits))


_SHAPES = st.shared(st.tuples(st.integers(1, 9), st.integers(1, 9)), key="shape")
# Values on and between thresholds, where strictly-greater matters.
_VALUES = st.one_of(st.sampled_from([float(t) for t in CUTS if np.isfinite(t)]), st.floats(-40, 40, width=32))


@settings(max_examples=50)
@given(
    _SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=_VALUES)),
    _SHAPES.flatmap(lambda shape: hnp.arrays(bool, shape)),
)
def test_dice_from_histograms_equals_the_naive_one_at_every_threshold(values: np.ndarray, mask: np.ndarray) -> None:
    mask = mask.copy()
    mask[0, 0] = True
    # The sigmoid of a logit nearer to 0 than its rounding is 0.5 itself, which is not above 0.5; the logit is above 0.
    values = np.where(np.abs(values) < 1e-6, np.float32(0), values)
    image = histograms(values, mask)
    naive = [2 * ((values > t) & mask).sum() / ((values > t).sum() + mask.sum()) for t in THRESHOLDS]
    np.testing.assert_allclose(dice_at_thresholds(image), naive)
    assert whole_image_dice(image) == pytest.approx(2 * mask.sum() / (mask.size + mask.sum()))
    assert np.array_equal(empty_at_thresholds(image), [not (values > t).any() for t in THRESHOLDS])
    # The published way: 101 passes over the sigmoid of the map.
    sigmoid = expit(values.astype(np.float64))
    passes = [(sigmoid > t) for t in PROBABILITIES]
    dice = [2 * (above & mask).sum() / (above.sum() + mask.sum()) for above in passes]
    np.testing.assert_array_equal(dice_at_probabilities(image), dice)
    iou = [(above & mask).sum() / (above | mask).sum() for above in passes]
    np.testing.assert_array_equal(iou_at_probabilities(image), iou)
    assert np.array_equal(empty_at_probabilities(image), [not above.any() for above in passes])


@settings(max_examples=50)
@given(
    st.lists(_SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=_VALUES)), min_size=2, max_size=2),
    _SHAPES.flatmap(lambda shape: hnp.arrays(bool, shape)),
)
def test_the_auroc_of_pixels_is_within_its_stated_bound(maps: list[np.ndarray], mask: np.ndarray) -> None:
    nothing = np.zeros_like(mask)
    value, bound = pixel_auroc([histograms(maps[0], mask), histograms(maps[1], nothing)])
    truth = np.concatenate([mask.ravel(), nothing.ravel()])
    if not truth.any():
        assert np.isnan(value)
        return
    exact = roc_auc_score(truth, np.concatenate([one.ravel() for one in maps]))
    assert abs(value - exact) <= bound + 1e-12
    # Values of distinct bins leave no doubt.
    binned = [np.searchsorted(CUTS, one.ravel(), side="left") for one in maps]
    assert value == pytest.approx(roc_auc_score(truth, np.concatenate(binned)))


def test_contrast_is_signed_and_defined_everywhere() -> None:
    rng = np.random.default_rng(0)
    values, mask = rng.normal(size=(20, 30)), np.zeros((20, 30), dtype=bool)
    mask[4:9, 5:12] = True
    values[mask] += 2
    expected = (values[mask].mean() - values[~mask].mean()) / np.sqrt(values[mask].var() + values[~mask].var())
    assert contrast(values, mask) == pytest.approx(expected)
    assert contrast(-values, mask) == pytest.approx(-expected)
    assert contrast(np.ones((20, 30)), mask) == 0.0
    assert contrast(values, np.ones_like(mask)) == contrast(values, np.zeros_like(mask)) == 0.0


def test_boxes_fill_whole_pixels_or_are_cut_as_published() -> None:
    box = [(1.5, 0.0, 3.5, 2.0)]
    assert np.flatnonzero(boxes_mask(box, 3, 6)[0]).tolist() == [2, 3]
    assert np.flatnonzero(boxes_mask(box, 3, 6, truncate=True)[0]).tolist() == [1, 2]
    assert boxes_mask([(-5.0, -5.0, 99.0, 99.0)], 3, 6).all()


def test_a_perfect_map_has_dice_one_between_its_values() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:5, 3:6] = True
    curve = dice_at_thresholds(histograms(np.where(mask, 2.0, -2.0).astype(np.float32), mask))
    best = segmentation.best_threshold(curve)
    assert curve[best] == 1.0
    assert THRESHOLDS[best] == pytest.approx(-2.0, abs=0.05)
    assert THRESHOLDS[best] >= -2.0


def test_the_macro_curve_weighs_findings_equally() -> None:
    curves = {"a": np.ones((1, 3)), "b": np.zeros((9, 3))}
    assert segmentation.macro_curve(curves) == pytest.approx([0.5, 0.5, 0.5])


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="the mask"):
        histograms(np.zeros((2, 2)), np.zeros((2, 3), dtype=bool))
