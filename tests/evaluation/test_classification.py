from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from rayzero.evaluation.metrics.areas import weighted_areas
from rayzero.evaluation.metrics.bootstrap import Bootstrap
from rayzero.evaluation.metrics.classification import (
    MASKED,
    classify,
    frequency_groups,
    mean_roc,
    micro_areas,
    prevalence_weighted,
)

# Few distinct scores, so that ties are common.
_SIZES = st.shared(st.integers(2, 40), key="n")
_SCORES = _SIZES.flatmap(lambda n: hnp.arrays(np.float64, n, elements=st.integers(-4, 4).map(float)))
_TRUTH = _SIZES.flatmap(lambda n: hnp.arrays(bool, n))
_WEIGHTS = _SIZES.flatmap(lambda n: hnp.arrays(np.float64, (3, n), elements=st.integers(0, 3).map(float)))


@given(_SCORES, _TRUTH, _WEIGHTS)
def test_weighted_figures_equal_scikit_learn(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> None:
    out = weighted_areas(scores, truth, weights)
    for row, sample in enumerate(weights):
        kept = sample > 0
        if not truth[kept].any() or truth[kept].all():
            assert math.isnan(out.auroc[row])
            continue
        assert out.auroc[row] == pytest.approx(roc_auc_score(truth, scores, sample_weight=sample))
        assert out.average_precision[row] == pytest.approx(average_precision_score(truth, scores, sample_weight=sample))
        # A replicate is the items repeated: those without weight are no operating points.
        times = sample.astype(int)
        precision, recall, _ = precision_recall_curve(np.repeat(truth, times), np.repeat(scores, times))
        assert out.trapezoid[row] == pytest.approx(auc(recall, precision))


def test_a_weight_is_a_repetition() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=30), rng.random(30) < 0.4
    weights = rng.integers(0, 4, size=30)
    repeated = weighted_areas(np.repeat(scores, weights), np.repeat(truth, weights), np.ones((1, weights.sum())))
    weighted = weighted_areas(scores, truth, weights[None].astype(float))
    np.testing.assert_allclose(weighted.auroc, repeated.auroc)
    np.testing.assert_allclose(weighted.trapezoid, repeated.trapezoid)


def test_trap_16_classes_with_one_value_are_dropped_and_uncertain_labels_masked() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(50, 4))
    labels = (rng.random((50, 4)) < 0.5).astype(np.int8)
    labels[:, 1], labels[:, 2] = 0, MASKED
    labels[:10, 0] = MASKED
    names = ["a", "all negative", "all masked", "d"]
    patients = [f"p{i}" for i in range(50)]
    groups = {"first": ["a"], "none": ["all negative"]}
    out = classify(logits, labels, names, patients, Bootstrap(patients, 100), groups)
    assert set(out.per_class) == {"a", "d"}
    assert set(out.dropped) == {"all negative", "all masked"}
    assert out.per_class["a"].masked == 10
    assert out.per_class["a"].auroc.n == 40
    expected = [roc_auc_score(labels[10:, 0], logits[10:, 0]), roc_auc_score(labels[:, 3], logits[:, 3])]
    assert out.macro_auroc.value == pytest.approx(np.mean(expected))
    assert out.groups["first"] == replace(out.per_class["a"].auroc, n=50)
    assert math.isnan(out.groups["none"].value)


def test_mean_roc_of_one_curve_keeps_its_area() -> None:
    rng = np.random.default_rng(2)
    truth, patients = rng.random(400) < 0.5, [str(i) for i in range(400)]
    logits = rng.normal(size=(400, 1)) + truth[:, None]
    out = classify(logits, truth[:, None].astype(np.int8), ["x"], patients, Bootstrap(patients, 0), {})
    false, true = mean_roc([out.per_class["x"].roc])
    assert np.trapezoid(true, false) == pytest.approx(out.macro_auroc.value, abs=0.01)


def test_replicates_equal_scikit_learn_on_the_drawn_images() -> None:
    rng = np.random.default_rng(3)
    logits, patients = np.round(rng.normal(size=(60, 2)), 1), [f"p{i // 2}" for i in range(60)]
    labels = (rng.random((60, 2)) < 0.3).astype(np.int8)
    labels[:7, 1] = MASKED
    bootstrap = Bootstrap(patients, 20)
    out = classify(logits, labels, ["a", "b"], patients, bootstrap, {})
    drawn = np.concatenate(list(bootstrap.columns(patients)), axis=1)
    for column, name in enumerate("ab"):
        keep = labels[:, column] != MASKED
        samples = out.per_class[name].auroc.samples
        assert samples is not None
        for replicate, value in enumerate(samples):
            weights = drawn[keep, replicate]
            expected = roc_auc_score(labels[keep, column], logits[keep, column], sample_weight=weights)
            assert value == pytest.approx(expected)


def test_micro_and_weighted_figures_equal_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    logits, labels = np.round(rng.normal(size=(80, 5)), 1), (rng.random((80, 5)) < 0.3).astype(np.int8)
    patients = [str(i) for i in range(80)]
    out = classify(logits, labels, list("abcde"), patients, Bootstrap(patients, 0), {})
    assert micro_areas(logits, labels).auroc[0] == pytest.approx(roc_auc_score(labels, logits, average="micro"))
    assert prevalence_weighted(out) == pytest.approx(roc_auc_score(labels, logits, average="weighted"))


def test_the_groups_of_padchest_are_head_medium_and_tail() -> None:
    counts = {f"c{n}": n for n in range(1, 101)}
    groups = frequency_groups(counts)
    assert [len(groups[name]) for name in ("head", "medium", "tail")] == [35, 55, 10]
    assert groups["tail"] == [f"c{n}" for n in range(1, 11)]
    # Few and rare classes: above the percentile, but still of the tail.
    assert frequency_groups({"a": 1, "b": 2})["tail"] == ["a", "b"]
