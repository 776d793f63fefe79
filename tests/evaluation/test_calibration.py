from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rayzero.bundle import Calibration
from rayzero.evaluation import sections
from rayzero.evaluation.metrics.calibration import REPLICATES, fit_platt, fit_with_replicates, reliability
from rayzero.evaluation.metrics.classification import MASKED


def test_platt_equals_an_unpenalised_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(3.0, 5.0, size=20000)
    labels = rng.random(20000) < 1 / (1 + np.exp(-(0.4 * logits - 1.5)))
    fit = fit_platt(logits, labels)
    reference = LogisticRegression(C=1e10).fit(logits[:, None], labels)
    assert fit.scale == pytest.approx(reference.coef_[0, 0], rel=1e-2)
    assert fit.bias == pytest.approx(reference.intercept_[0], rel=1e-2)
    out = reliability(fit.probability(logits), labels)
    assert out.expected_error < 0.02
    assert out.count.sum() == 20000


def test_separable_and_reversed_logits_give_a_finite_positive_scale() -> None:
    logits = np.array([-2.0, -1.0, 1.0, 2.0])
    assert 0 < fit_platt(logits, np.array([0, 0, 1, 1])).scale < 100
    assert 0 < fit_platt(logits, np.array([1, 1, 0, 0])).scale < 0.01
    assert 0 < fit_platt(np.ones(4), np.array([1, 0, 0, 0])).scale < 100


def test_one_label_value_cannot_be_calibrated() -> None:
    with pytest.raises(ValueError, match="needs both labels"):
        fit_platt(np.ones(3), np.zeros(3))


def test_expected_error_of_a_constant_is_its_gap() -> None:
    out = reliability(np.full(10, 0.7), np.array([1] * 4 + [0] * 6))
    assert out.expected_error == pytest.approx(0.3)
    assert reliability(np.array([0.0, 1.0]), np.array([0, 1])).expected_error == 0.0


def test_weights_count_as_repeats() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=40)
    labels = (logits + rng.normal(size=40) > 0).astype(int)
    repeats = rng.integers(0, 4, size=40)
    one = fit_platt(logits, labels, repeats)
    other = fit_platt(np.repeat(logits, repeats), np.repeat(labels, repeats))
    assert (one.scale, one.bias) == pytest.approx((other.scale, other.bias), rel=1e-3)


def _sample(patients: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Three findings of each patient, alike among themselves; the true curve is sigmoid(0.8 * logit - 1)."""
    rng = np.random.default_rng(seed)
    logits = np.repeat(rng.normal(0.5, 2.0, size=patients), 3) + rng.normal(0, 0.5, size=3 * patients)
    labels = (rng.random(3 * patients) < 1 / (1 + np.exp(-(0.8 * logits - 1)))).astype(int)
    return logits, labels, [f"p{row // 3}" for row in range(3 * patients)]


def test_the_interval_holds_the_probability_and_narrows_with_more_patients() -> None:
    asked = np.linspace(-30, 30, 41)
    widths = []
    for patients in (20, 80, 320):
        fit = fit_with_replicates(*_sample(patients, 3))
        assert len(fit.replicates) == REPLICATES
        interval = fit.interval(asked)
        assert interval is not None
        low, high = interval.T
        point = fit.probability(asked)
        assert (low <= point).all()
        assert (point <= high).all()
        widths.append(float((high - low).mean()))
    assert widths[0] > 1.4 * widths[1] > 1.4 * 1.4 * widths[2]


def test_the_interval_covers_the_true_curve_about_as_often_as_it_says() -> None:
    asked = np.array([-1.0, 1.0, 3.0])
    truth = Calibration(0.8, -1.0).probability(asked)
    inside = []
    for seed in range(10):
        interval = fit_with_replicates(*_sample(60, seed)).interval(asked)
        assert interval is not None
        inside.append((interval[:, 0] <= truth) & (truth <= interval[:, 1]))
    assert np.mean(inside) >= 0.8


def test_no_interval_where_patients_are_few_or_draws_lack_a_label() -> None:
    logits, labels, patients = _sample(9, 0)
    assert fit_with_replicates(logits, labels, patients).replicates == ()
    assert Calibration().interval(logits) is None
    # The one positive patient is missing from more than a third of the draws.
    rare = np.array([name == "p0" for name in patients * 4]).astype(int)
    many = [f"{part}{name}" for part in "abcd" for name in patients]
    rare[len(patients) :] = 0
    kept = fit_with_replicates(np.tile(logits, 4), rare, many).replicates
    assert REPLICATES / 2 < len(kept) < REPLICATES


def test_pairs_are_drawn_with_their_patients() -> None:
    rng = np.random.default_rng(5)
    patients = [f"p{image // 2}" for image in range(60)]
    labels = rng.integers(0, 2, size=(60, 3))
    logits = labels + rng.normal(size=(60, 3))
    labels[rng.random((60, 3)) < 0.2] = MASKED
    labels[:, 2] = 0
    scored: Any = SimpleNamespace(logits=logits, labels=labels, patients=patients)
    # By hand: the third finding has one label only, and masked pairs count for nothing.
    pairs = [(image, finding) for image in range(60) for finding in range(2) if labels[image, finding] != MASKED]
    expected = fit_with_replicates(
        np.array([logits[pair] for pair in pairs]),
        np.array([labels[pair] for pair in pairs]),
        [patients[image] for image, _ in pairs],
    )
    assert len(expected.replicates) == REPLICATES
    assert sections.calibration(scored, scored).calibration == expected
