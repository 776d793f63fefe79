"""Thresholds and the figures of yes-or-no answers against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_curve,
)

from rayzero.evaluation.metrics.bootstrap import Bootstrap
from rayzero.evaluation.metrics.classification import MASKED
from rayzero.evaluation.metrics.operating import (
    answer_figures,
    choose_threshold,
    cross_fitted,
    fold_of,
    single_label_figures,
    stratified_folds,
)

_SIZES = st.shared(st.integers(2, 30), key="n")
_SCORES = _SIZES.flatmap(lambda n: hnp.arrays(np.float64, n, elements=st.integers(-4, 4).map(float)))
_TRUTH = _SIZES.flatmap(lambda n: hnp.arrays(bool, n))


@given(_SCORES, _TRUTH, st.sampled_from(["mcc", "f1", "corner"]))
def test_a_threshold_is_the_best_of_all_scores(scores: np.ndarray, truth: np.ndarray, criterion: str) -> None:
    if not truth.any() or truth.all():
        with pytest.raises(ValueError, match="both labels"):
            choose_threshold(scores, truth, criterion)  # type: ignore[arg-type]
        return
    goals = {
        "mcc": lambda answers: matthews_corrcoef(truth, answers),
        "f1": lambda answers: f1_score(truth, answers),
        "corner": lambda answers: (
            -np.hypot((answers & ~truth).sum() / (~truth).sum(), 1 - recall_score(truth, answers))
        ),
    }
    goal = goals[criterion]
    chosen = choose_threshold(scores, truth, criterion)  # type: ignore[arg-type]
    assert goal(scores >= chosen) == pytest.approx(max(goal(scores >= t) for t in np.unique(scores)))


def test_the_corner_is_that_of_the_roc_curve() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.3
    scores = rng.normal(size=200) + truth
    false, true, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    assert choose_threshold(scores, truth, "corner") == thresholds[np.argmin(np.hypot(false, 1 - true))]


def test_figures_equal_scikit_learn_with_intervals() -> None:
    rng = np.random.default_rng(1)
    answers, labels = rng.random((90, 3)) < 0.4, (rng.random((90, 3)) < 0.3).astype(np.int8)
    labels[:10, 0] = MASKED
    answers[:, 2] = False
    patients = [f"p{i // 3}" for i in range(90)]
    out = answer_figures(answers, labels, patients, Bootstrap(patients, 200))
    references = {
        "mcc": matthews_corrcoef,
        "f1": lambda t, a: f1_score(t, a, zero_division=0),
        "accuracy": accuracy_score,
        "balanced_accuracy": balanced_accuracy_score,
        "precision": lambda t, a: precision_score(t, a, zero_division=0),
        "recall": recall_score,
        "specificity": lambda t, a: recall_score(1 - t, 1 - a),
        "weighted_f1": lambda t, a: f1_score(t, a, average="weighted", zero_division=0),
    }
    assert set(out) == set(references)
    for name, reference in references.items():
        each = []
        for column in range(3):
            kept = labels[:, column] != MASKED
            each.append(reference(labels[kept, column], answers[kept, column].astype(int)))
        assert out[name].value == pytest.approx(np.mean(each)), name
        assert out[name].low < out[name].value < out[name].high


def test_cross_fitting_never_looks_at_the_patient_it_judges() -> None:
    rng = np.random.default_rng(2)
    patients = [f"p{i // 2}" for i in range(200)]
    truth = rng.random(200) < 0.4
    scores = rng.normal(size=200) + truth
    answers = cross_fitted(scores, truth, patients, "mcc")
    folds = np.array([fold_of(name) for name in patients])
    for fold in np.unique(folds):
        here = folds == fold
        t = choose_threshold(scores[~here], truth[~here], "mcc")
        assert np.array_equal(answers[here], scores[here] >= t)
    assert all(len(set(folds[i : i + 2])) == 1 for i in range(0, 200, 2))


def test_cross_fitting_without_a_positive_elsewhere_says_no() -> None:
    patients = [f"p{i}" for i in range(60)]
    truth = np.arange(60) == 7
    scores = np.where(truth, 9.0, np.arange(60.0) / 60)
    assert not cross_fitted(scores, truth, patients, "f1")[7]
    assert cross_fitted(scores, ~truth, patients, "f1")[7]
    assert not cross_fitted(scores[6:8], truth[6:8], ["p", "p"], "mcc").any()


def test_single_label_accuracy_counts_ties_as_wrong() -> None:
    logits = np.array([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    labels = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]], dtype=np.int8)
    patients = list("abcd")
    out = single_label_figures(logits, labels, patients, Bootstrap(patients, 50))
    assert out["accuracy"].value == 0.5
    assert out["balanced_accuracy"].value == 0.5
    doubled = labels.copy()
    doubled[1, 1] = 1
    with pytest.raises(ValueError, match="row 1 has 2 positive"):
        single_label_figures(logits, doubled, patients, Bootstrap(patients, 0))


def test_ten_stratified_folds_judge_images_that_did_not_choose() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(300) < 0.4
    separable = np.where(truth, 0.9, 0.1)
    assert stratified_folds(separable, truth) == {"accuracy": 1.0, "f1": 1.0}
    noise = stratified_folds(rng.random(300), truth)
    # With nothing to learn, the best F1 of nine folds says yes to nearly all.
    assert noise["f1"] == pytest.approx(2 * truth.mean() / (1 + truth.mean()), abs=0.05)
    with pytest.raises(ValueError, match="found 2"):
        stratified_folds(np.arange(20.0), np.arange(20) < 2)
