"""From logits to probabilities: Platt scaling on validation studies, and how far the result is off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from rayzero.bundle import Calibration
from rayzero.evaluation.metrics.bootstrap import Bootstrap, Float

BINS = 15
# The smallest slope, per standard deviation of the logits: a higher logit never means a lower probability.
_MIN_SLOPE = 1e-3
# Enough for the ends of a 95 % interval, and few enough to travel in a bundle's card.
REPLICATES = 200
# Draws from fewer patients are too alike: an interval from them would look surer than it is.
_FEWEST_PATIENTS = 10


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


def fit_platt(
    logits: Float, labels: np.ndarray[Any, Any], weights: Float | None = None, *, near: Calibration | None = None
) -> Calibration:
    """Scale and bias with which sigmoid(scale * logit + bias) fits ``labels`` (n,) in {0, 1}; scale is positive.

    ``weights`` (n,) say how often each counts, once when absent; the search begins at ``near``. Targets are smoothed
    as Platt proposed, so that separable logits do not send the scale to infinity. Raises ValueError when only one
    label value occurs.
    """
    positive = np.asarray(labels) == 1
    counts = np.ones(len(positive)) if weights is None else np.asarray(weights, dtype=np.float64)
    hits, misses = float(counts[positive].sum()), float(counts[~positive].sum())
    if not hits or not misses:
        raise ValueError(f"calibration needs both labels, found {hits:g} positive and {misses:g} negative")
    share = counts / (hits + misses)
    target = np.where(positive, (hits + 1) / (hits + 2), 1 / (misses + 2))
    centre, spread = float(np.mean(logits)), float(np.std(logits)) or 1.0
    unit = (np.asarray(logits, dtype=np.float64) - centre) / spread

    def loss(parameters: Float) -> tuple[float, Float]:
        z = parameters[0] * unit + parameters[1]
        error = (expit(z) - target) * share
        return float(share @ (np.logaddexp(0.0, z) - target * z)), np.array([error @ unit, error.sum()])

    start = np.array([1.0, np.log(hits / misses)])
    if near is not None:
        start = np.array([near.scale * spread, near.bias + near.scale * centre])
    fit = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(_MIN_SLOPE, None), (None, None)])
    slope, offset = (float(value) for value in fit.x)
    return Calibration(scale=slope / spread, bias=offset - slope * centre / spread)


def fit_with_replicates(logits: Float, labels: np.ndarray[Any, Any], patients: Sequence[str]) -> Calibration:
    """``fit_platt``, and the same on draws of the ``patients`` (n,), all pairs of one patient together.

    No replicates come of fewer than 10 patients, or where half of the draws or more hold only one label value.
    Raises ValueError when only one label value occurs.
    """
    fit = fit_platt(logits, labels)
    if len(set(patients)) < _FEWEST_PATIENTS:
        return fit

    def refit(weights: Float) -> Float:
        return np.array([_refit(logits[row > 0], labels[row > 0], row[row > 0], fit) for row in weights])

    drawn = Bootstrap(patients, REPLICATES).samples(patients, refit)
    kept = drawn[np.isfinite(drawn).all(axis=1)]
    if len(kept) <= REPLICATES / 2:
        return fit
    # Six digits: the card stays short, and no probability changes that anybody could tell.
    return replace(fit, replicates=tuple((float(f"{scale:.6g}"), float(f"{bias:.6g}")) for scale, bias in kept))


def _refit(logits: Float, labels: np.ndarray[Any, Any], weights: Float, near: Calibration) -> tuple[float, float]:
    """Scale and bias of one draw, NaN where it holds only one label value."""
    try:
        fit = fit_platt(logits, labels, weights, near=near)
    except ValueError:
        return math.nan, math.nan
    return fit.scale, fit.bias


def reliability(probability: Float, labels: np.ndarray[Any, Any]) -> Reliability:
    """Reliability of ``probability`` (n,) against ``labels`` (n,) in {0, 1}, in ``BINS`` equal-width bins."""
    bins = np.minimum((np.asarray(probability) * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    kept = count > 0
    means = [np.bincount(bins, weights=values, minlength=BINS)[kept] / count[kept] for values in (probability, labels)]
    return Reliability(means[0], means[1], count[kept])
