"""Overlap of a thresholded map with a mask, at every threshold from one pass over the pixels (datasets spec, 5.3).

Per image, two histograms suffice: map values inside the mask, and everywhere. A reverse cumulative sum gives the
true positives and the predicted area at each threshold, so no mask is ever stacked. Work is on logits: sigmoid is
monotone, and a logit keeps the resolution that a probability near 1 has lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit

from rayzero.evaluation.metrics.bootstrap import Float

Counts = np.ndarray[Any, np.dtype[np.int64]]
Float32 = np.ndarray[Any, np.dtype[np.float32]]

THRESHOLDS: Float32 = np.sinh(np.linspace(-4.0, 4.0, 401)).astype(np.float32)
"""Candidate thresholds (K,), logits: 0.02 apart around 0 and 2 % apart towards +-27, so that maps of any system's
scale are resolved. Counts are exact at these values (strictly greater), not between them."""

UNTAUGHT = int(np.argmin(np.abs(THRESHOLDS)))
"""The column of logit 0, where a sigmoid is one half: the threshold that nobody chose."""

PROBABILITIES: Float = np.linspace(0.0, 1.0, 101)
"""The published grid of thresholds (P,) on the sigmoid of a map."""


def _as_logits(probabilities: Float) -> Float32:
    """Float32 logits (P,) that a float32 logit exceeds exactly when its sigmoid exceeds the probability."""
    with np.errstate(divide="ignore"):
        cuts = logit(probabilities).astype(np.float32)
    inner = np.isfinite(cuts)
    # The largest float32 whose sigmoid is not above: within two steps of the rounded logarithm.
    for _ in range(3):
        cuts = np.where(inner & (expit(cuts.astype(np.float64)) > probabilities), np.nextafter(cuts, -np.inf), cuts)
    for _ in range(3):
        following = np.nextafter(cuts, np.float32(np.inf))
        cuts = np.where(inner & (expit(following.astype(np.float64)) <= probabilities), following, cuts)
    return np.asarray(cuts, dtype=np.float32)


_PROBABILITY_CUTS = _as_logits(PROBABILITIES)
CUTS: Float32 = np.unique(np.concatenate([THRESHOLDS, _PROBABILITY_CUTS]))
"""Where histograms are cut: both grids together, from minus to plus infinity."""

_OF_THRESHOLDS = np.searchsorted(CUTS, THRESHOLDS)
_OF_PROBABILITIES = np.searchsorted(CUTS, _PROBABILITY_CUTS)


@dataclass(frozen=True)
class Histograms:
    """Counts (len(CUTS) + 1,) of map values between cuts, inside the mask and over the whole image."""

    foreground: Counts
    everything: Counts

    @property
    def positive(self) -> bool:
        """Whether the mask has a pixel."""
        return bool(self.foreground.any())


def histograms(values: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Histograms:
    """Histograms of a map (H, W) against a boolean mask (H, W). Raises ValueError when the shapes differ.

    Bin i holds the values above exactly i cuts.
    """
    if values.shape != mask.shape:
        raise ValueError(f"the map is {values.shape} and the mask {mask.shape}")
    values = values.astype(np.float32, copy=False)
    return Histograms(_histogram(values[mask]), _histogram(values.reshape(-1)))


def dice_at_thresholds(image: Histograms) -> Float:
    """Dice (K,) of ``map > threshold`` for one image with at least one foreground pixel."""
    return _dice(image, _OF_THRESHOLDS)


def dice_at_probabilities(image: Histograms) -> Float:
    """Dice (P,) of ``sigmoid(map) > probability`` on the published grid, for an image with foreground."""
    return _dice(image, _OF_PROBABILITIES)


def iou_at_probabilities(image: Histograms) -> Float:
    """Intersection over union (P,) of ``sigmoid(map) > probability``, for an image with foreground."""
    hits, predicted = (_above(counts)[_OF_PROBABILITIES] for counts in (image.foreground, image.everything))
    return np.asarray(hits / (predicted + image.foreground.sum() - hits))


def empty_at_thresholds(image: Histograms) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether no pixel is above each of ``THRESHOLDS`` (K,): the right answer for an image without the finding."""
    return np.asarray(_above(image.everything)[_OF_THRESHOLDS] == 0)


def empty_at_probabilities(image: Histograms) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether no pixel's sigmoid is above each of ``PROBABILITIES`` (P,)."""
    return np.asarray(_above(image.everything)[_OF_PROBABILITIES] == 0)


def pixel_auroc(images: Iterable[Histograms]) -> tuple[float, float]:
    """AUROC over all pixels of all images, values of one bin counted as tied, and by how much it can be off.

    With E the exact area, |AUROC - E| is at most the second number: half the pairs that share a bin. NaN without
    pixels of both kinds.
    """
    inside, everywhere = np.zeros(len(CUTS) + 1), np.zeros(len(CUTS) + 1)
    for image in images:
        inside += image.foreground
        everywhere += image.everything
    outside = everywhere - inside
    pairs = inside.sum() * outside.sum()
    if not pairs:
        return float("nan"), float("nan")
    below = np.concatenate([[0.0], np.cumsum(outside)[:-1]])
    ties = float(inside @ outside) / 2
    return (float(inside @ below) + ties) / pairs, ties / pairs


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


def _dice(image: Histograms, columns: np.ndarray[Any, Any]) -> Float:
    hits, predicted = (_above(counts)[columns] for counts in (image.foreground, image.everything))
    return np.asarray(2.0 * hits / (predicted + image.foreground.sum()))


def _histogram(values: np.ndarray[Any, Any]) -> Counts:
    # Sorting a million pixels takes a tenth of the time that searching the cuts for each of them does.
    below = np.searchsorted(np.sort(values), CUTS, side="right")
    return np.diff(below, prepend=0, append=len(values)).astype(np.int64)


def _above(counts: Counts) -> Counts:
    """Pixels above each cut (len(CUTS),) from counts (len(CUTS) + 1,)."""
    return np.cumsum(counts[::-1])[::-1][1:]
