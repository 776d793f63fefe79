"""From logits to probabilities: Platt scaling on validation studies, and how far the result is off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from rayzero.bundle import Calibration
from rayzero.evaluation.metrics.bootstrap import Float

BINS = 15
# The smallest slope, per standard deviation of the logits: a higher logit never means a lower probability.
_MIN_SLOPE = 1e-3


@dataclass(frozen=True)
class Reliability:
    """Equal-width bins of probability that hold something: mean probability, observed share, count, each (b,)."""

    predicted: Float
    observed: Float
    count: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def expected_error(self) -> float:
        """Expected calibration error: the mean gap of the bins, weighted by their counts."""
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.count))


def fit_platt(logits: Float, labels: np.ndarray[Any, Any]) -> Calibration:
    """Scale and bias with which sigmoid(scale * logit + bias) fits ``labels`` (n,) in {0, 1}; scale is positive.

    Targets are smoothed as Platt proposed, so that separable logits do not send the scale to infinity. Raises
    ValueError when only one label value occurs.
    """
    positive = np.asarray(labels) == 1
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        raise ValueError(f"calibration needs both labels, found {hits} positive and {misses} negative")
    target = np.where(positive, (hits + 1) / (hits + 2), 1 / (misses + 2))
    centre, spread = float(np.mean(logits)), float(np.std(logits)) or 1.0
    unit = (np.asarray(logits, dtype=np.float64) - centre) / spread

    def loss(parameters: Float) -> tuple[float, Float]:
        z = parameters[0] * unit + parameters[1]
        error = (expit(z) - target) / len(z)
        return float(np.mean(np.logaddexp(0.0, z) - target * z)), np.array([error @ unit, error.sum()])

    start = np.array([1.0, np.log(hits / misses)])
    fit = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(_MIN_SLOPE, None), (None, None)])
    slope, offset = (float(value) for value in fit.x)
    return Calibration(scale=slope / spread, bias=offset - slope * centre / spread)


def probabilities(logits: Float, calibration: Calibration) -> Float:
    """Calibrated probabilities of ``logits``, of any shape."""
    return np.asarray(expit(calibration.scale * np.asarray(logits, dtype=np.float64) + calibration.bias))


def reliability(probability: Float, labels: np.ndarray[Any, Any]) -> Reliability:
    """Reliability of ``probability`` (n,) against ``labels`` (n,) in {0, 1}, in ``BINS`` equal-width bins."""
    bins = np.minimum((np.asarray(probability) * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    kept = count > 0
    means = [np.bincount(bins, weights=values, minlength=BINS)[kept] / count[kept] for values in (probability, labels)]
    return Reliability(means[0], means[1], count[kept])
