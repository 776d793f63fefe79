"""Figures of yes-or-no answers: where a threshold is chosen, and what it gives (datasets spec, section 5.1).

Whoever chooses a threshold on the images that it is judged on has an oracle; the functions here do not know where
their scores come from, and their callers say so. Without validation images, ``cross_fitted`` chooses the threshold of
every tenth of the patients on the other nine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rayzero.evaluation.metrics.bootstrap import Bootstrap, Estimate, Float, divide, estimate, mean_defined
from rayzero.evaluation.metrics.classification import MASKED, Labels

Criterion = Literal["mcc", "f1", "corner"]
Truth = np.ndarray[Any, np.dtype[np.bool_]]
_FOLDS = 10

FIGURES = ("mcc", "f1", "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "weighted_f1")


def choose_threshold(scores: Float, truth: Truth, criterion: Criterion) -> float:
    """The score from which on (>=) the answer is yes, of all scores that occur: the lowest of the best.

    ``mcc`` and ``f1`` are maximised; ``corner`` minimises the distance to no false and all true positives. Raises
    ValueError when ``truth`` has one value only.
    """
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=bool)
    if not truth.any() or truth.all():
        raise ValueError(f"a threshold needs both labels, found {int(truth.sum())} positive of {len(truth)}")
    candidates, inverse = np.unique(scores, return_inverse=True)
    of_each = np.stack([np.bincount(inverse, weights=side, minlength=len(candidates)) for side in (truth, ~truth)])
    hit, false = np.cumsum(of_each[:, ::-1], axis=1)[:, ::-1]
    missed, right = truth.sum() - hit, (~truth).sum() - false
    if criterion == "corner":
        goal = -np.hypot(false / (~truth).sum(), missed / truth.sum())
    else:
        goal = _figure(criterion, hit, false, missed, right)
    return float(candidates[int(np.nanargmax(goal))])


def cross_fitted(scores: Float, truth: Truth, patients: Sequence[str], criterion: Criterion) -> Truth:
    """Answers (n,): each tenth of the patients by the threshold that is best on the other nine.

    A patient's tenth follows from a hash of the id. Where the others have one label only, that is the answer, and no
    without any others: what they do not teach must not come from the patients who are judged.
    """
    folds = np.array([fold_of(name) for name in patients])
    answers = np.zeros(len(scores), dtype=bool)
    for fold in range(_FOLDS):
        here = folds == fold
        taught = truth[~here]
        if taught.any() and not taught.all():
            answers[here] = scores[here] >= choose_threshold(scores[~here], taught, criterion)
        else:
            answers[here] = taught.any()
    return answers


def fold_of(patient: str) -> int:
    """The tenth that a patient is in."""
    return hashlib.sha256(patient.encode()).digest()[0] % _FOLDS


def answer_figures(
    answers: np.ndarray[Any, Any], labels: Labels, patients: Sequence[str], bootstrap: Bootstrap
) -> Mapping[str, Estimate]:
    """Macro figures over classes of boolean ``answers`` (N, C) against ``labels`` (N, C) in {1, 0, MASKED}.

    Each of ``FIGURES`` with its interval. ``weighted_f1`` averages the F1 of yes and of no by how often each is
    true. A figure that a class does not define (precision without a yes) is zero for it, as in published tables; an
    MCC that divides by zero, too.
    """
    yes, no = answers.astype(bool), ~answers.astype(bool)
    positive, negative = labels == 1, (labels != 1) & (labels != MASKED)
    cells = np.concatenate([yes & positive, yes & negative, no & positive, no & negative], axis=1).astype(np.float64)
    classes = answers.shape[1]

    def macro(counts: Float) -> Float:
        """(r, 4 C) counts as (r, F) figures."""
        four = counts.reshape(len(counts), 4, classes).transpose(1, 0, 2)
        present = four.sum(axis=0) > 0
        values = [np.where(present, _figure(name, *four), np.nan) for name in FIGURES]
        return np.stack([mean_defined(value, axis=1) for value in values], axis=1)

    value = macro(cells.sum(axis=0)[None])[0]
    samples = bootstrap.samples(patients, lambda weights: macro(weights @ cells))
    return {name: estimate(float(value[k]), samples[:, k], len(answers)) for k, name in enumerate(FIGURES)}


def single_label_figures(
    logits: Float, labels: Labels, patients: Sequence[str], bootstrap: Bootstrap
) -> Mapping[str, Estimate]:
    """``accuracy`` and ``balanced_accuracy`` of the highest logit (N, C) where each image has one positive label.

    An image whose highest logit is tied counts as wrong. Raises ValueError for a row without exactly one positive.
    """
    positive = labels == 1
    if not (positive.sum(axis=1) == 1).all():
        row = int(np.flatnonzero(positive.sum(axis=1) != 1)[0])
        raise ValueError(f"row {row} has {int(positive[row].sum())} positive labels; single-label accuracy needs one")
    own = logits[positive]
    right = ((logits >= own[:, None]).sum(axis=1) == 1).astype(np.float64)
    per_class = positive.astype(np.float64)

    def balanced(weights: Float) -> Float:
        return mean_defined(divide(weights @ (per_class * right[:, None]), weights @ per_class), axis=1)

    value = float(balanced(np.ones((1, len(right))))[0])
    return {
        "accuracy": bootstrap.mean(right, patients),
        "balanced_accuracy": estimate(value, bootstrap.samples(patients, balanced), len(right)),
    }


def _figure(name: str, hit: Float, false: Float, missed: Float, right: Float) -> Float:
    """A figure of ``FIGURES`` from true and false positives, false and true negatives, elementwise."""
    total = hit + false + missed + right
    if name == "mcc":
        top = hit * right - false * missed
        return _over(top, np.sqrt((hit + false) * (hit + missed) * (right + false) * (right + missed)))
    if name == "f1":
        return _over(2 * hit, 2 * hit + false + missed)
    if name == "accuracy":
        return _over(hit + right, total)
    if name == "balanced_accuracy":
        return (_over(hit, hit + missed) + _over(right, right + false)) / 2
    if name == "precision":
        return _over(hit, hit + false)
    if name == "recall":
        return _over(hit, hit + missed)
    if name == "specificity":
        return _over(right, right + false)
    yes, no = _over(2 * hit, 2 * hit + false + missed), _over(2 * right, 2 * right + false + missed)
    return _over(yes * (hit + missed) + no * (right + false), total)


def _over(top: Float, bottom: Float) -> Float:
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    return np.asarray(np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0))


def stratified_folds(
    probability: Float, truth: Truth, *, step: float = 0.005, seed: int = 0
) -> dict[Literal["accuracy", "f1"], float]:
    """Accuracy and F1 as ALTA measures them on RSNA: the mean over ten stratified folds of shuffled images.

    The threshold of a fold is the first of 0, ``step``, ..., 1 whose F1 on the other nine folds is best (datasets
    spec, section 5.1). Raises ValueError with fewer than ten images of a label.
    """
    from sklearn.model_selection import StratifiedKFold

    fewest = min(int(truth.sum()), int((~truth).sum()))
    if fewest < _FOLDS:
        raise ValueError(f"ten stratified folds need ten images of each label, found {fewest}")
    grid = np.round(np.arange(0.0, 1.0 + step / 2, step), 6)
    found: dict[str, list[float]] = {"accuracy": [], "f1": []}
    for learn, judge in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(probability, truth):
        best = max(grid, key=lambda t: (_at("f1", probability[learn] >= t, truth[learn]), -t))
        for name, values in found.items():
            values.append(_at(name, probability[judge] >= best, truth[judge]))
    return {"accuracy": math.fsum(found["accuracy"]) / _FOLDS, "f1": math.fsum(found["f1"]) / _FOLDS}


def _at(name: str, answers: Truth, truth: Truth) -> float:
    four = [np.array([(a & t).sum()]) for a, t in ((answers, truth), (answers, ~truth), (~answers, truth),
                                                    (~answers, ~truth))]  # fmt: skip
    return float(_figure(name, *four)[0])
