from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayzero.metrics.retrieval import (
    CUTOFFS,
    Gallery,
    build_gallery,
    chance_recall,
    distinct_ranks,
    instance_ranks,
    overlap_at,
    precision_at,
    recall_hits,
)


def test_similarity_is_the_mean_logit_of_the_reports_sentences() -> None:
    scores = np.array([[1.0, 2.0, 4.0], [0.0, 5.0, 1.0]])
    gallery = build_gallery(scores, ["a", "b", "c"], [frozenset("ac"), frozenset("b")])
    assert gallery.similarity.tolist() == [[2.5, 2.0], [0.5, 5.0]]
    assert gallery.own.tolist() == [0, 1]


@st.composite
def _galleries(draw: st.DrawFn) -> Gallery:
    images = draw(st.integers(2, 8))
    reports = [frozenset(draw(st.sampled_from(["a", "ab", "bc", "c"]))) for _ in range(images)]
    cells = draw(st.lists(st.integers(-2, 2), min_size=3 * images, max_size=3 * images))
    return build_gallery(np.array(cells, dtype=float).reshape(images, 3), ["a", "b", "c"], reports)


@given(_galleries())
def test_ranks_equal_naive_loops(gallery: Gallery) -> None:
    n = len(gallery.own)
    similarity = [[gallery.similarity[i, gallery.own[j]] for j in range(n)] for i in range(n)]
    to_report, to_image = instance_ranks(gallery)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        assert to_report[i] == 1 + sum(similarity[i][j] >= similarity[i][i] for j in others)
        assert to_image[i] == 1 + sum(similarity[j][i] >= similarity[i][i] for j in others)
    to_report, to_image = distinct_ranks(gallery)
    for i, row in enumerate(gallery.similarity):
        own = gallery.own[i]
        assert to_report[i] == 1 + sum(row[m] >= row[own] for m in range(len(row)) if m != own)
    for m, column in enumerate(gallery.similarity.T):
        best = max(column[i] for i in range(n) if gallery.own[i] == m)
        assert to_image[m] == 1 + sum(column[i] >= best for i in range(n) if gallery.own[i] != m)


def test_constant_scores_retrieve_nothing() -> None:
    reports = [frozenset([name]) for name in "abcdefghijkl"]
    gallery = build_gallery(np.zeros((12, 12)), list("abcdefghijkl"), reports)
    for ranks in instance_ranks(gallery):
        assert recall_hits(ranks).sum() == 0


def test_equal_reports_tie_exactly() -> None:
    """The same report of another study is placed before the paired one, whatever the rounding of a product."""
    rng = np.random.default_rng(0)
    names = [f"s{i}" for i in range(7)]
    reports = [frozenset(names[:5])] * 6 + [frozenset(names[5:])]
    gallery = build_gallery(rng.normal(size=(7, 7)).astype(np.float32), names, reports)
    assert (instance_ranks(gallery)[0][:6] >= 6).all()


def test_a_report_without_sentences_is_refused() -> None:
    with pytest.raises(ValueError, match="without sentences"):
        build_gallery(np.zeros((1, 1)), ["a"], [frozenset()])


def test_chance_is_the_expected_recall_of_a_random_order() -> None:
    relevant = [1, 2, 11]
    exact = [
        np.mean(
            [
                np.mean([any(item < right for item in top) for top in itertools.combinations(range(12), cutoff)])
                for right in relevant
            ]
        )
        for cutoff in CUTOFFS
    ]
    assert chance_recall(12, np.array(relevant)) == pytest.approx(exact)
    assert chance_recall(4, np.array([1])).tolist() == pytest.approx([0.25, 1.0, 1.0])


def test_precision_and_overlap_equal_the_written_definitions() -> None:
    rng = np.random.default_rng(5)
    similarity = rng.normal(size=(12, 20))
    asked, answers = rng.integers(0, 3, 12), rng.integers(0, 3, 20)
    relevant = asked[:, None] == answers[None, :]
    found = precision_at(similarity, relevant, (1, 5, 20))
    for query in range(12):
        order = np.argsort(-similarity[query])
        assert found[query] == pytest.approx([relevant[query, order[:k]].mean() for k in (1, 5, 20)])
    # Ties never help: a constant score finds the wrong answers first.
    assert precision_at(np.zeros((1, 4)), np.array([[True, False, True, False]]), (2, 3)).tolist() == [[0.0, 1 / 3]]
    with pytest.raises(ValueError, match="20 candidates are fewer than the 50"):
        precision_at(similarity, relevant, (5, 50))
    labels = rng.random((8, 4)) < 0.4
    labels[3], labels[0, 0] = False, True
    near = rng.normal(size=(8, 8))
    overlap = overlap_at(near, labels, (2, 5))
    assert np.isnan(overlap[3]).all()
    asked_rows = [row for row in range(8) if labels[row].any()]
    order = sorted(asked_rows, key=lambda row: -near[0, row])[:2]
    shared = [(labels[0] & labels[row]).sum() / (labels[0] | labels[row]).sum() for row in order]
    assert overlap[0, 0] == pytest.approx(np.mean(shared))
