"""Areas under ROC and precision-recall curves of weighted items: exact, with ties, for thousands of weightings at once.

A bootstrap replicate is a weight per item. The items of a class are put in order once; a replicate then needs no more
than the sums of its weights over runs of that order: the negatives between two scores of positives, the negatives tied
with one, and the positives there. All three areas follow from these sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayzero.evaluation.metrics.bootstrap import Float, divide

Index = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Ranked:
    """Items in runs: ``rows`` (n,) of a weight matrix, and where each of the 3 G + 1 runs ``begin``.

    For each of the G distinct scores of positives, from the highest down: negatives above it and below the one
    before, negatives tied with it, positives that have it. The last run holds the negatives below them all.
    """

    rows: Index
    begin: Index


@dataclass(frozen=True)
class Areas:
    """Per weighting (r,): AUROC, step-wise average precision, and the trapezoid area of the same curve."""

    auroc: Float
    average_precision: Float
    trapezoid: Float


def rank_items(scores: Float, truth: np.ndarray[Any, Any], rows: Index | None = None) -> Ranked:
    """Put items with ``scores`` (n,) and boolean ``truth`` (n,) in runs; ``rows`` (n,) are theirs in the weights."""
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=bool)
    levels = np.unique(scores[truth])
    # How many distinct positive scores are above an item; its own level is the next one down.
    above = len(levels) - np.searchsorted(levels, scores, side="right")
    tied = (above < len(levels)) & (levels[np.minimum(len(levels) - 1 - above, len(levels) - 1)] == scores)
    run = 3 * above + np.where(truth, 2, np.where(tied, 1, 0))
    order = np.argsort(run, kind="stable")
    counts = np.bincount(run, minlength=3 * len(levels) + 1)
    own = order if rows is None else np.asarray(rows, dtype=np.int64)[order]
    return Ranked(own, np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64))


def areas(ranked: Ranked, weights: np.ndarray[Any, np.dtype[np.float32]]) -> Areas:
    """The areas under each column of ``weights`` (N, r): whole numbers below 2^24, so that every sum is exact.

    Equal scores enter together: a tie of a positive and a negative counts one half in the AUROC. The trapezoid area
    joins the operating points by straight lines and begins at precision 1, as scikit-learn's ``auc`` of its
    ``precision_recall_curve`` does. NaN where a column leaves a needed side without weight.
    """
    sums = torch.nn.functional.embedding_bag(
        torch.from_numpy(ranked.rows), torch.from_numpy(weights), torch.from_numpy(ranked.begin), mode="sum"
    )
    runs = sums.numpy().astype(np.float64)
    between, tied, gained = runs[:-1:3], runs[1::3], runs[2::3]
    hits = np.cumsum(gained, axis=0)
    passed = np.cumsum(between + tied, axis=0)
    above = passed - tied
    positive, negative = gained.sum(axis=0), passed[-1] + runs[-1]
    before = hits - gained
    precision = _ratio(hits, hits + passed, 0.0)
    # With nothing shown yet, the curve starts at precision 1.
    entering = _ratio(before, before + above, 1.0)
    wins = np.einsum("gr,gr->r", gained, negative - above - tied / 2)
    steps = np.einsum("gr,gr->r", gained, precision)
    trapezoids = np.einsum("gr,gr->r", gained, (precision + entering) / 2)
    defined = np.where(negative > 0, positive, 0.0)
    return Areas(divide(wins, positive * negative), divide(steps, defined), divide(trapezoids, defined))


def weighted_areas(scores: Float, truth: np.ndarray[Any, Any], weights: Float) -> Areas:
    """``areas`` of ``scores`` (n,) under each row of ``weights`` (r, n); all NaN without any positive."""
    if not np.any(truth):
        nothing = np.full(len(weights), np.nan)
        return Areas(nothing, nothing, nothing)
    return areas(rank_items(scores, truth), np.ascontiguousarray(np.asarray(weights, dtype=np.float32).T))


def _ratio(top: Float, bottom: Float, otherwise: float) -> Float:
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, otherwise), where=bottom > 0))
