"""Dice of a thresholded map, at every threshold from one pass over the pixels (datasets spec, section 5.3).

Per image, two histograms suffice: map values inside the mask, and everywhere. A reverse cumulative sum gives the
true positives and the predicted area at each threshold, so no mask is ever stacked. Work is on logits: sigmoid is
monotone, and a logit keeps the resolution that a probability near 1 has lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayzero.evaluation.metrics.bootstrap import Float

Counts = np.ndarray[Any, np.dtype[np.int64]]

THRESHOLDS: np.ndarray[Any, np.dtype[np.float32]] = np.sinh(np.linspace(-4.0, 4.0, 401)).astype(np.float32)
"""Candidate thresholds (K,), logits: 0.02 apart around 0 and 2 % apart towards +-27, so that maps of any system's
scale are resolved. Counts are exact at these values (strictly greater), not between them."""


@dataclass(frozen=True)
class Histograms:
    """Counts (K + 1,) of map values between thresholds, inside the mask and over the whole image."""

    foreground: Counts
    everything: Counts


def histograms(values: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Histograms:
    """Histograms of a map (H, W) against a boolean mask (H, W). Raises ValueError when the shapes differ.

    Bin i holds the values above exactly i thresholds.
    """
    if values.shape != mask.shape:
        raise ValueError(f"the map is {values.shape} and the mask {mask.shape}")
    # 'left' counts the thresholds strictly below a value: exactly those with value > threshold.
    bins = np.searchsorted(THRESHOLDS, values.ravel().astype(np.float32), side="left")
    size = len(THRESHOLDS) + 1
    return Histograms(np.bincount(bins[mask.ravel()], minlength=size), np.bincount(bins, minlength=size))


def dice_at_thresholds(image: Histograms) -> Float:
    """Dice (K,) of ``map > threshold`` for one image with at least one foreground pixel."""
    hits, predicted = (_above(counts) for counts in (image.foreground, image.everything))
    return np.asarray(2.0 * hits / (predicted + image.foreground.sum()))


def whole_image_dice(image: Histograms) -> float:
    """Dice of marking every pixel: what a map that says nothing can reach."""
    foreground = float(image.foreground.sum())
    return 2.0 * foreground / (foreground + float(image.everything.sum()))


def macro_curve(curves: Mapping[str, Float]) -> Float:
    """Dice (K,) from per-finding curves (n, K): mean over a finding's images, then over findings."""
    return np.asarray(np.mean([values.mean(axis=0) for values in curves.values()], axis=0))


def best_threshold(curve: Float) -> int:
    """Index of the first maximum of a Dice curve (K,)."""
    return int(np.argmax(curve))


def _above(counts: Counts) -> Counts:
    """Pixels above each threshold (K,) from counts (K + 1,)."""
    return np.cumsum(counts[::-1])[::-1][1:]
