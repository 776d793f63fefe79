"""Zero-shot classification: areas under ROC and precision-recall curves per class and macro, with bootstrap intervals.

Scores are raw logits of the positive prompt (datasets spec, section 5.1): a monotone map per class changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from rayzero.evaluation.metrics.areas import Areas, Ranked, areas, rank_items, weighted_areas
from rayzero.evaluation.metrics.bootstrap import Bootstrap, Estimate, Float, estimate, mean_defined

Labels = np.ndarray[Any, np.dtype[np.int8]]

MASKED = -1
"""A label that is uncertain or was never given: its image does not count for that class."""


@dataclass(frozen=True)
class ClassResult:
    """One class: its figures, the images behind them, and its curves.

    ``roc`` is (false, true) positive rates, ``pr`` is (recall, precision) from recall 0 up.
    """

    auroc: Estimate
    average_precision: Estimate
    auprc: Estimate
    positives: int
    negatives: int
    masked: int
    roc: tuple[Float, Float]
    pr: tuple[Float, Float]

    @property
    def prevalence(self) -> float:
        """The average precision of a constant score."""
        return self.positives / (self.positives + self.negatives)


@dataclass(frozen=True)
class Classification:
    """``macro`` and ``groups`` are unweighted means over classes of AUROC; ``dropped`` says why a class has none.

    Average precision is the step-wise area, AUPRC the trapezoid one: published tables hold either.
    """

    macro_auroc: Estimate
    macro_average_precision: Estimate
    macro_auprc: Estimate
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
    kept: dict[str, np.ndarray[Any, Any]] = {}
    columns: dict[str, int] = {}
    dropped: dict[str, str] = {}
    for column, name in enumerate(classes):
        rows = np.flatnonzero(labels[:, column] != MASKED)
        truth = labels[rows, column] == 1
        if not truth.any() or truth.all():
            dropped[name] = f"{int(truth.sum())} positive and {int((~truth).sum())} negative images"
            continue
        kept[name], columns[name] = rows, column
    scores = {name: np.asarray(logits[rows, columns[name]], dtype=np.float64) for name, rows in kept.items()}
    truths = {name: labels[rows, columns[name]] == 1 for name, rows in kept.items()}
    ranked = {name: rank_items(scores[name], truths[name], rows) for name, rows in kept.items()}
    draws = _draws(ranked, bootstrap, patients)
    per_class = {
        name: _one_class(scores[name], truths[name], draws[name], len(labels) - len(rows))
        for name, rows in kept.items()
    }
    members = {group: tuple(name for name in names if name in per_class) for group, names in groups.items()}
    return Classification(
        macro_auroc=_macro(per_class, draws, 0, len(labels)),
        macro_average_precision=_macro(per_class, draws, 1, len(labels)),
        macro_auprc=_macro(per_class, draws, 2, len(labels)),
        groups={
            group: _macro({name: per_class[name] for name in names}, draws, 0, len(labels))
            for group, names in members.items()
        },
        members=members,
        per_class=per_class,
        dropped=dropped,
    )


def frequency_groups(counts: Mapping[str, int], tail: int = 10, head: float = 65.0) -> dict[str, list[str]]:
    """Classes by their positives: ``head`` above the 65th percentile of all counts, ``tail`` of at most ten, and
    ``medium`` between (datasets spec, section 2.2). A class of the tail is never of the head."""
    limit = float(np.percentile(list(counts.values()), head)) if counts else 0.0
    groups: dict[str, list[str]] = {"head": [], "medium": [], "tail": []}
    for name, count in counts.items():
        groups["tail" if count <= tail else "head" if count > limit else "medium"].append(name)
    return groups


def micro_areas(logits: Float, labels: Labels) -> Areas:
    """The areas over all (image, class) pairs together, each (1,): here the scale of one class against another counts.

    Without interval: published tables give none.
    """
    kept = labels != MASKED
    scores = np.asarray(logits, dtype=np.float64)[kept]
    return weighted_areas(scores, labels[kept] == 1, np.ones((1, len(scores))))


def prevalence_weighted(part: Classification) -> float:
    """Mean AUROC over classes, each weighted by its positives; NaN without any class."""
    counts = [one.positives for one in part.per_class.values()]
    values = [one.auroc.value for one in part.per_class.values()]
    return float(np.average(values, weights=counts)) if counts else math.nan


def mean_roc(curves: Sequence[tuple[Float, Float]], points: int = 101) -> tuple[Float, Float]:
    """The average of ROC ``curves``: mean true positive rate at equal false positive rates."""
    axis = np.linspace(0.0, 1.0, points)
    mean = np.mean([np.interp(axis, false, true) for false, true in curves], axis=0)
    # At zero, interpolation takes the last point of the vertical stretch; a curve starts at the origin.
    mean[0] = 0.0
    return axis, mean


def _draws(ranked: Mapping[str, Ranked], bootstrap: Bootstrap, patients: Sequence[str]) -> dict[str, Float]:
    """Replicates (R, 3) of each class's three areas. A block of weights is made once and serves all classes."""
    parts: dict[str, list[Float]] = {name: [] for name in ranked}
    for weights in bootstrap.columns(patients):
        for name, one in ranked.items():
            found = areas(one, weights)
            parts[name].append(np.stack([found.auroc, found.average_precision, found.trapezoid], axis=1))
    return {name: np.concatenate(blocks) if blocks else np.empty((0, 3)) for name, blocks in parts.items()}


def _one_class(scores: Float, truth: np.ndarray[Any, Any], samples: Float, masked: int) -> ClassResult:
    value = weighted_areas(scores, truth, np.ones((1, len(scores))))
    false, true, _ = roc_curve(truth, scores)
    precision, recall, _ = precision_recall_curve(truth, scores)
    return ClassResult(
        auroc=estimate(float(value.auroc[0]), samples[:, 0], len(scores)),
        average_precision=estimate(float(value.average_precision[0]), samples[:, 1], len(scores)),
        auprc=estimate(float(value.trapezoid[0]), samples[:, 2], len(scores)),
        positives=int(truth.sum()),
        negatives=int((~truth).sum()),
        masked=masked,
        roc=(false, true),
        pr=(recall[::-1], precision[::-1]),
    )


def _macro(per_class: Mapping[str, ClassResult], draws: Mapping[str, Float], which: int, images: int) -> Estimate:
    if not per_class:
        return Estimate(math.nan, math.nan, math.nan, 0)
    values = [(one.auroc, one.average_precision, one.auprc)[which].value for one in per_class.values()]
    samples = mean_defined(np.stack([draws[name][:, which] for name in per_class]), axis=0)
    return estimate(float(np.mean(values)), samples, images)
