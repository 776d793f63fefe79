"""Zero-shot classification: AUROC and average precision per class and macro, with bootstrap intervals.

Scores are raw logits of the positive prompt (datasets spec, section 5.1): a monotone map per class changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from rayzero.evaluation.metrics.bootstrap import Bootstrap, Estimate, Float, divide, estimate, mean_defined

Labels = np.ndarray[Any, np.dtype[np.int8]]

MASKED = -1
"""A label that is uncertain or was never given: its image does not count for that class."""


@dataclass(frozen=True)
class ClassResult:
    """One class: its figures, the images behind them, and its ROC curve as (false, true) positive rates."""

    auroc: Estimate
    average_precision: Estimate
    positives: int
    negatives: int
    masked: int
    roc: tuple[Float, Float]

    @property
    def prevalence(self) -> float:
        """The average precision of a constant score."""
        return self.positives / (self.positives + self.negatives)


@dataclass(frozen=True)
class Classification:
    """``macro`` and ``groups`` are unweighted means over classes of AUROC; ``dropped`` says why a class has none."""

    macro_auroc: Estimate
    macro_average_precision: Estimate
    groups: Mapping[str, Estimate]
    members: Mapping[str, tuple[str, ...]]
    per_class: Mapping[str, ClassResult]
    dropped: Mapping[str, str]


def classify(
    logits: Float,
    labels: Labels,
    classes: Sequence[str],
    patients: Sequence[str],
    bootstrap: Bootstrap,
    groups: Mapping[str, Sequence[str]],
) -> Classification:
    """Figures of ``logits`` (N, C) against ``labels`` (N, C) in {1, 0, MASKED}.

    A class with one value only has no AUROC: it is dropped and reported. ``groups`` names sets of classes whose
    macro AUROC is wanted apart. In a replicate where a class has one value only, the macro is over the others.
    """
    per_class: dict[str, ClassResult] = {}
    dropped: dict[str, str] = {}
    draws: dict[str, Float] = {}
    for column, name in enumerate(classes):
        kept = labels[:, column] != MASKED
        truth = labels[kept, column] == 1
        if not truth.any() or truth.all():
            dropped[name] = f"{int(truth.sum())} positive and {int((~truth).sum())} negative images"
            continue
        owners = [patient for patient, keep in zip(patients, kept, strict=True) if keep]
        masked = int((~kept).sum())
        per_class[name], draws[name] = _one_class(logits[kept, column], truth, owners, bootstrap, masked)
    members = {group: tuple(name for name in names if name in per_class) for group, names in groups.items()}
    return Classification(
        macro_auroc=_macro(per_class, draws, 0, len(labels)),
        macro_average_precision=_macro(per_class, draws, 1, len(labels)),
        groups={
            group: _macro({name: per_class[name] for name in names}, draws, 0, len(labels))
            for group, names in members.items()
        },
        members=members,
        per_class=per_class,
        dropped=dropped,
    )


def weighted_areas(scores: Float, truth: np.ndarray[Any, Any], weights: Float) -> tuple[Float, Float]:
    """AUROC (r,) and average precision (r,) of ``scores`` (n,) under each row of ``weights`` (r, n).

    ``truth`` (n,) is boolean. One sort serves all rows. Equal scores enter together, so that a tie of a positive and
    a negative counts one half in the AUROC; average precision is the step-wise area, without interpolation. NaN
    where a row leaves a needed side without weight.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    drawn = weights[:, order]
    hits = np.cumsum(drawn * truth[order], axis=1)
    shown = np.cumsum(drawn, axis=1)
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    if len(last) < len(ranked):
        # Only the end of each run of ties is an operating point.
        hits, shown = hits[:, last], shown[:, last]
    gained = np.diff(hits, axis=1, prepend=0.0)
    added = np.diff(shown, axis=1, prepend=0.0)
    positive, total = hits[:, -1], shown[:, -1]
    # Trapezoids over the negatives of each step: added - gained wide, hits - gained / 2 high on average.
    wins = np.einsum("rg,rg->r", added - gained, hits - gained / 2)
    precision = np.divide(hits, shown, out=np.zeros_like(hits), where=shown > 0)
    area = np.einsum("rg,rg->r", gained, precision)
    return divide(wins, positive * (total - positive)), divide(area, positive)


def mean_roc(curves: Sequence[tuple[Float, Float]], points: int = 101) -> tuple[Float, Float]:
    """The average of ROC ``curves``: mean true positive rate at equal false positive rates."""
    axis = np.linspace(0.0, 1.0, points)
    mean = np.mean([np.interp(axis, false, true) for false, true in curves], axis=0)
    # At zero, interpolation takes the last point of the vertical stretch; a curve starts at the origin.
    mean[0] = 0.0
    return axis, mean


def _one_class(
    scores: Float, truth: np.ndarray[Any, Any], patients: Sequence[str], bootstrap: Bootstrap, masked: int
) -> tuple[ClassResult, Float]:
    scores = np.asarray(scores, dtype=np.float64)

    def both(weights: Float) -> Float:
        return np.stack(weighted_areas(scores, truth, weights), axis=1)

    value = both(np.ones((1, len(scores))))[0]
    samples = bootstrap.samples(patients, both)
    false, true, _ = roc_curve(truth, scores)
    result = ClassResult(
        auroc=estimate(float(value[0]), samples[:, 0], len(scores)),
        average_precision=estimate(float(value[1]), samples[:, 1], len(scores)),
        positives=int(truth.sum()),
        negatives=int((~truth).sum()),
        masked=masked,
        roc=(false, true),
    )
    return result, samples


def _macro(per_class: Mapping[str, ClassResult], draws: Mapping[str, Float], which: int, images: int) -> Estimate:
    if not per_class:
        return Estimate(math.nan, math.nan, math.nan, 0)
    values = [(one.auroc, one.average_precision)[which].value for one in per_class.values()]
    samples = mean_defined(np.stack([draws[name][:, which] for name in per_class]), axis=0)
    return estimate(float(np.mean(values)), samples, images)
