"""Image and report retrieval: R@K both ways, P@K by class, overlap of label sets (datasets spec, section 5.4).

A report is the set of its minimal sentences, and the similarity of an image and a report is the mean, over those
sentences, of the sentence's logit on the image. Ranks are pessimistic: whatever ties with the right answer is
placed before it, so that constant scores retrieve nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln

Float = np.ndarray[Any, np.dtype[np.float64]]
Ranks = np.ndarray[Any, np.dtype[np.int64]]
Report = frozenset[str]

CUTOFFS = (1, 5, 10)


@dataclass(frozen=True)
class Gallery:
    """N image-report pairs whose reports are M distinct sets of sentences.

    ``similarity`` (N, M) of images and distinct reports; ``own`` (N,) the column of each image's report.
    """

    similarity: Float
    own: np.ndarray[Any, np.dtype[np.intp]]
    reports: tuple[Report, ...]


def build_gallery(scores: Float, sentences: Sequence[str], reports: Sequence[Report]) -> Gallery:
    """The gallery of N images from sentence logits ``scores`` (N, S) and each image's report.

    Raises ValueError for a report without sentences.
    """
    if not all(reports):
        raise ValueError("a report without sentences cannot be retrieved")
    distinct = tuple(dict.fromkeys(reports))
    column = {report: index for index, report in enumerate(distinct)}
    row = {text: index for index, text in enumerate(sentences)}
    weights = np.zeros((len(sentences), len(distinct)))
    for index, report in enumerate(distinct):
        weights[[row[text] for text in report], index] = 1.0 / len(report)
    # Distinct reports only: two equal columns of a matrix product may differ in the last bit, and ties must tie.
    similarity = np.asarray(scores, dtype=np.float64) @ weights
    return Gallery(similarity, np.array([column[report] for report in reports], dtype=np.intp), distinct)


def instance_ranks(gallery: Gallery) -> tuple[Ranks, Ranks]:
    """Ranks (N,) of the paired item, image to report and report to image, among N candidates each.

    The same report under another image is a wrong answer that ties with the right one, and comes before it.
    """
    full = gallery.similarity[:, gallery.own]
    paired = np.diagonal(full)
    return (full >= paired[:, None]).sum(axis=1), (full >= paired[None, :]).sum(axis=0)


def distinct_ranks(gallery: Gallery) -> tuple[Ranks, Ranks]:
    """Ranks among distinct reports: of each image's own (N,), and of the best image that each report describes (M,)."""
    similarity, own = gallery.similarity, gallery.own
    paired = similarity[np.arange(len(own)), own]
    to_report = (similarity >= paired[:, None]).sum(axis=1)
    described = own[:, None] == np.arange(similarity.shape[1])
    best = np.where(described, similarity, -np.inf).max(axis=0)
    return to_report, 1 + ((similarity >= best) & ~described).sum(axis=0)


def precision_at(similarity: Float, relevant: np.ndarray[Any, Any], cutoffs: Sequence[int]) -> Float:
    """Precision (Q, len(cutoffs)): the share of right answers among each query's K best of M candidates.

    ``similarity`` (Q, M), ``relevant`` (Q, M) boolean. Of candidates that tie, the wrong ones come first. Raises
    ValueError when there are fewer candidates than a cutoff asks for.
    """
    if similarity.shape[1] < max(cutoffs):
        raise ValueError(f"{similarity.shape[1]} candidates are fewer than the {max(cutoffs)} that P@K looks at")
    found = np.empty((len(similarity), len(cutoffs)))
    for query, (scores, right) in enumerate(zip(similarity, relevant, strict=True)):
        order = np.lexsort((right, -scores))[: max(cutoffs)]
        hits = np.cumsum(right[order])
        found[query] = [hits[cutoff - 1] / cutoff for cutoff in cutoffs]
    return found


def overlap_at(similarity: Float, labels: np.ndarray[Any, Any], cutoffs: Sequence[int]) -> Float:
    """Overlap (Q, len(cutoffs)) of the label sets of volumes and of their K nearest: mean of shared over joint labels.

    ``similarity`` (Q, Q), ``labels`` (Q, C) boolean; a volume without any label neither asks nor answers (NaN rows),
    and is asked about itself as published. Of ties, the lower row comes first.
    """
    asked = labels.any(axis=1)
    found = np.full((len(labels), len(cutoffs)), np.nan)
    candidates = np.flatnonzero(asked)
    for query in candidates:
        order = candidates[np.argsort(-similarity[query, candidates], kind="stable")][: max(cutoffs)]
        shared = (labels[order] & labels[query]).sum(axis=1) / (labels[order] | labels[query]).sum(axis=1)
        found[query] = [shared[:cutoff].mean() for cutoff in cutoffs]
    return found


def recall_hits(ranks: Ranks, cutoffs: Sequence[int] = CUTOFFS) -> Float:
    """Hits (n, len(cutoffs)) of ``ranks`` (n,) at each cutoff."""
    return (np.asarray(ranks)[:, None] <= np.array(cutoffs)).astype(np.float64)


def chance_recall(candidates: int, relevant: np.ndarray[Any, Any], cutoffs: Sequence[int] = CUTOFFS) -> Float:
    """Expected recall (len(cutoffs),) of a random order when query i has ``relevant[i]`` right answers."""
    out = []
    right = np.asarray(relevant, dtype=np.float64)
    for cutoff in cutoffs:
        wrong = candidates - right
        # 1 - C(wrong, K) / C(all, K), in logs; certain once fewer than K candidates are wrong.
        possible = wrong >= cutoff
        log = gammaln(wrong + 1) - gammaln(np.where(possible, wrong - cutoff, 0) + 1)
        log -= gammaln(candidates + 1) - gammaln(max(candidates - cutoff, 0) + 1)
        out.append(float(np.mean(np.where(possible, -np.expm1(log), 1.0))))
    return np.array(out)
