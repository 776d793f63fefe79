from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rayzero.evaluation.metrics.calibration import fit_platt, probabilities, reliability


def test_platt_equals_an_unpenalised_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(3.0, 5.0, size=20000)
    labels = rng.random(20000) < 1 / (1 + np.exp(-(0.4 * logits - 1.5)))
    fit = fit_platt(logits, labels)
    reference = LogisticRegression(C=1e10).fit(logits[:, None], labels)
    assert fit.scale == pytest.approx(reference.coef_[0, 0], rel=1e-2)
    assert fit.bias == pytest.approx(reference.intercept_[0], rel=1e-2)
    out = reliability(probabilities(logits, fit), labels)
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
