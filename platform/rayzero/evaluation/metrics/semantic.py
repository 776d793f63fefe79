"""Open-vocabulary segmentation: every pixel is of the finding whose map is highest there, or of the background.

The background rule: a pixel where even the highest map (logit) is not above a threshold is of no finding. Counts at
every threshold come from one pass over an image, so that no mask is kept. Findings may overlap in truth, while a pixel
is given to one of them: it is right when that one is true there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayzero.evaluation.metrics.bootstrap import Bootstrap, Estimate, Float, divide, estimate, mean_defined
from rayzero.evaluation.metrics.segmentation import THRESHOLDS

Counts = np.ndarray[Any, np.dtype[np.int32]]
Values = np.ndarray[Any, Any]

BACKGROUND_THRESHOLDS = THRESHOLDS[::4]
"""Where the background may end (K,), logits."""


@dataclass(frozen=True)
class Assigned:
    """Pixels of one image at each threshold, for C findings and, last, the background.

    ``hits`` (C + 1, K) of those given to a class that are of it, ``predicted`` (C + 1, K) of all that are given to
    it, ``size`` (C + 1,) of those that are of it.
    """

    hits: Counts
    predicted: Counts
    size: Counts

    def to_bytes(self) -> bytes:
        """Little-endian 32-bit numbers."""
        return np.concatenate([self.hits.ravel(), self.predicted.ravel(), self.size]).astype("<i4").tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> Assigned:
        """The inverse of ``to_bytes``."""
        numbers = np.frombuffer(data, "<i4").astype(np.int32)
        steps = len(BACKGROUND_THRESHOLDS)
        classes = len(numbers) // (2 * steps + 1)
        hits, predicted, size = np.split(numbers, [classes * steps, 2 * classes * steps])
        return Assigned(hits.reshape(classes, steps), predicted.reshape(classes, steps), size)


def assign(maps: Iterable[Values], masks: Mapping[int, Values], shape: tuple[int, ...]) -> Assigned:
    """Give each pixel to the first of the highest ``maps`` (each of ``shape``, logits), taken in one at a time.

    ``masks`` (of ``shape``, boolean) are those of the findings, by their place, that the image has.
    """
    winner, highest = np.zeros(shape, dtype=np.int32), np.full(shape, -np.inf, dtype=np.float32)
    count = 0
    for place, values in enumerate(maps):
        above = values > highest
        winner[above] = place
        np.maximum(highest, values, out=highest)
        count = place + 1
    nothing, own = np.ones(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for place, mask in masks.items():
        nothing &= ~mask
        own |= mask & (winner == place)
    steps = len(BACKGROUND_THRESHOLDS)
    # The number of thresholds that a pixel is above.
    passed = np.searchsorted(BACKGROUND_THRESHOLDS, highest.ravel(), side="left")
    bins = winner.ravel() * (steps + 1) + passed

    def above_each(chosen: Values) -> Counts:
        counts = np.bincount(chosen, minlength=count * (steps + 1)).reshape(count, steps + 1)
        return np.asarray(counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:], dtype=np.int32)

    def left(chosen: Values) -> Counts:
        """Pixels not above each threshold."""
        return np.bincount(chosen, minlength=steps + 1)[:steps].cumsum().astype(np.int32)

    size = [int(masks[place].sum()) if place in masks else 0 for place in range(count)]
    return Assigned(
        hits=np.vstack([above_each(bins[own.ravel()]), left(passed[nothing.ravel()])]),
        predicted=np.vstack([above_each(bins), left(passed)]),
        size=np.array([*size, int(nothing.sum())], dtype=np.int32),
    )


def iou_curve(images: Sequence[Assigned]) -> Float:
    """Intersection over union (C + 1, K) of pixels of all ``images`` together; NaN for a class that has none."""
    hits = np.asarray(np.sum([one.hits for one in images], axis=0, dtype=np.float64))
    predicted = np.asarray(np.sum([one.predicted for one in images], axis=0, dtype=np.float64))
    size = np.asarray(np.sum([one.size for one in images], axis=0, dtype=np.float64))[:, None]
    return np.where(size > 0, divide(hits, predicted + size - hits), np.nan)


def best_background(curve: Float) -> int:
    """The first threshold with the highest mean IoU of findings, from an ``iou_curve``."""
    return int(np.argmax(mean_defined(curve[:-1], axis=0)))


def iou_estimates(
    images: Sequence[Assigned],
    classes: Sequence[str],
    patients: Sequence[str],
    bootstrap: Bootstrap,
    threshold: int,
) -> dict[str, Estimate]:
    """IoU at one threshold of every class (C + 1 names) that has a pixel, with replicates for intervals."""
    hits = np.stack([one.hits[:, threshold] for one in images]).astype(np.float64)
    predicted = np.stack([one.predicted[:, threshold] for one in images]).astype(np.float64)
    size = np.stack([one.size for one in images]).astype(np.float64)
    union = predicted + size - hits

    def ratio(weights: Float) -> Float:
        return np.where(weights @ size > 0, divide(weights @ hits, weights @ union), np.nan)

    value = ratio(np.ones((1, len(images))))[0]
    samples = bootstrap.samples(patients, ratio)
    present = size.sum(axis=0) > 0
    return {
        name: estimate(float(value[place]), samples[:, place], int((size[:, place] > 0).sum()))
        for place, name in enumerate(classes)
        if bool(present[place])
    }
