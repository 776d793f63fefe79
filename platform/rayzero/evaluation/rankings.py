"""The figures of retrieval benchmarks: recall of paired reports, precision by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayzero.evaluation.benchmark import Benchmark, Measured
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.measures import first_labels, precision_figures, referenced
from rayzero.evaluation.metrics.bootstrap import Bootstrap, Float
from rayzero.evaluation.records import ImageScores
from rayzero.evaluation.result import Figure
from rayzero.evaluation.sections import DIRECTIONS, Scored
from rayzero.evaluation.truth import Truth
from rayzero.metrics import retrieval
from rayzero.studies.study import Study

_KINDS = {"instance": "paired item", "distinct": "distinct reports"}


def report_text(study: Study) -> str:
    """What a report says of the study: findings and impression, or its whole text where it has neither section."""
    sections = [part.strip() for part in (study.report.findings, study.report.impression) if part.strip()]
    return " ".join(" ".join(sections or [study.report.text.strip()]).split())


def report_texts(truth: Truth) -> tuple[str, ...]:
    """Every distinct report, in alphabetical order. Raises EvaluationError when there are fewer than two."""
    texts = sorted({report_text(study) for study in truth.studies.values()} - {""})
    if len(texts) < 2:
        raise EvaluationError(
            f"{truth.where} has {len(texts)} distinct reports and retrieval needs two; ingest the corpus with its "
            "reports"
        )
    return tuple(texts)


def report_recall(benchmark: Benchmark, measured: Measured, *, cutoffs: Sequence[int]) -> list[Figure]:
    """R@K both ways, for the paired item and among distinct reports; one image per study, ties pessimistic."""
    test = measured.test
    first: dict[str, ImageScores] = {}
    for one in test.images:
        first.setdefault(one.study_id, one)
    rows = [(one, report_text(test.truth.studies[name])) for name, one in first.items()]
    rows = [(one, text) for one, text in rows if text]
    sentences = report_texts(test.truth)
    gallery = retrieval.build_gallery(
        np.stack([one.sentences for one, _ in rows]), sentences, [frozenset([text]) for _, text in rows]
    )
    owners = [one.patient_id for one, _ in rows]
    to_report, to_image = retrieval.distinct_ranks(gallery)
    ranks = {
        "instance": retrieval.instance_ranks(gallery),
        "distinct": (to_report, to_image[gallery.own]),
    }
    alike = np.bincount(gallery.own)[gallery.own]
    ones = np.ones(len(rows))
    chances = {
        "instance": [retrieval.chance_recall(len(rows), ones, cutoffs)] * 2,
        "distinct": [
            retrieval.chance_recall(len(gallery.reports), ones, cutoffs),
            retrieval.chance_recall(len(rows), alike, cutoffs),
        ],
    }
    figures = []
    for kind, pair in ranks.items():
        for direction, values, chance in zip(DIRECTIONS, pair, chances[kind], strict=True):
            hits = retrieval.recall_hits(values, cutoffs)
            for place, cutoff in enumerate(cutoffs):
                value = measured.bootstrap.mean(hits[:, place], owners)
                key = f"{direction}_recall_at_{cutoff}" + ("" if kind == "instance" else "_distinct")
                name = f"R@{cutoff}, {direction.replace('_', ' ')}, {_KINDS[kind]}"
                published = value if kind == "instance" else None
                figures.append(Figure(key, name, published, value, "ties: wrong answers first", float(chance[place])))
    return referenced(benchmark, figures)


def label_overlap(
    benchmark: Benchmark, measured: Measured, *, classes: Sequence[str], cutoffs: Sequence[int]
) -> list[Figure]:
    """Shared over joint labels of volumes and of their K nearest by their own vectors, which CT-CLIP calls MAP@K.

    As published a volume is its own first candidate; the strict figure leaves out all of its study, whose other
    reconstructions show the same and have the same labels. Volumes without any of ``classes`` neither ask nor answer.
    """
    test = measured.test
    vectors = _unit_vectors(test.images)
    labels = test.truth.labels([one.study_id for one in test.images], classes) == 1
    asked = np.flatnonzero(labels.any(axis=1))
    similarity, labels = vectors[asked] @ vectors[asked].T, labels[asked]
    if not len(asked):
        return []
    studies = np.array([test.images[int(row)].study_id for row in asked])
    own = studies[:, None] == studies[None, :]
    apart = np.where(own, -np.inf, similarity)
    usable = [cutoff for cutoff in cutoffs if cutoff <= (~own).sum(axis=1).min()]
    if not usable:
        return []
    owners = [test.patients[row] for row in asked]
    published, strict = (retrieval.overlap_at(each, labels, usable) for each in (similarity, apart))
    figures = [
        Figure(
            f"label_overlap_at_{cutoff}", f"Overlap of labels among {cutoff} nearest volumes",
            measured.bootstrap.mean(published[:, place], owners), measured.bootstrap.mean(strict[:, place], owners),
            "published: the volume itself is the first of them; strict: nothing of its own study is",
        )
        for place, cutoff in enumerate(usable)
    ]  # fmt: skip
    return referenced(benchmark, figures)


def class_reports(benchmark: Benchmark, measured: Measured, *, cutoffs: Sequence[int]) -> list[Figure]:
    """P@K of images asking for reports of their own class. Every image's report is a candidate, duplicates too."""
    test = measured.test
    labels = np.array(first_labels(test))
    texts = {text: place for place, text in enumerate(report_texts(test.truth))}
    reports = [report_text(test.truth.studies[one.study_id]) for one in test.images]
    silent = [one.study_id for one, text in zip(test.images, reports, strict=True) if not text]
    if silent:
        raise EvaluationError(f"{test.truth.where}: {silent[0]} has no report; ingest the list with its impressions")
    scores = np.stack([one.sentences for one in test.images])[:, [texts[text] for text in reports]].astype(np.float64)
    relevant = labels[:, None] == labels[None, :]
    return precision_figures(
        benchmark, scores, relevant, test.patients, cutoffs, measured.bootstrap, what=", image to report"
    )


def image_to_image(benchmark: Benchmark, measured: Measured, *, cutoffs: Sequence[int]) -> list[Figure]:
    """P@K of query images among candidates, by the cosine of the images' own vectors."""
    test = measured.test
    asking, answering = _roles(test)
    vectors = _unit_vectors(test.images)
    labels = np.array(first_labels(test))
    relevant = labels[asking][:, None] == labels[answering][None, :]
    owners = [test.patients[row] for row in asking]
    similarity: Float = vectors[asking] @ vectors[answering].T
    return precision_figures(
        benchmark, similarity, relevant, owners, cutoffs, measured.bootstrap, "image_", ", image to image"
    )


def text_to_image(benchmark: Benchmark, measured: Measured, *, cutoffs: Sequence[int]) -> list[Figure]:
    """P@K of sentences among candidates: those of ``--queries``, or the prompts of the classes.

    The interval is over queries: candidates are given.
    """
    test = measured.test
    _, answering = _roles(test)
    labels = np.array(first_labels(test))[answering]
    if benchmark.queries:
        asked = [finding for finding, _ in benchmark.queries]
        similarity = np.stack([test.images[row].sentences for row in answering]).T.astype(np.float64)
    else:
        asked = list(test.findings)
        similarity = test.logits[answering].T
    unknown = sorted(set(asked) - set(test.findings))
    if unknown:
        raise EvaluationError(f"the queries ask for {unknown[0]!r}; known are {', '.join(test.findings)}")
    relevant = np.array(asked)[:, None] == labels[None, :]
    owners = [f"query {place}" for place in range(len(asked))]
    again = Bootstrap(owners, measured.bootstrap.replicates)
    return precision_figures(benchmark, similarity, relevant, owners, cutoffs, again, "text_", ", text to image")


def _unit_vectors(images: Sequence[ImageScores]) -> Float:
    vectors = np.stack([one.embedding for one in images]).astype(np.float64)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _roles(test: Scored) -> tuple[list[int], list[int]]:
    """Rows of query and of candidate images. Raises EvaluationError when either is missing."""
    rows = {
        role: [place for place, one in enumerate(test.images) if one.study_id.startswith(f"{role}/")]
        for role in ("query", "candidate")
    }
    if not all(rows.values()):
        raise EvaluationError(f"{test.truth.where} lacks query or candidate images; ingest chexpert-8x200")
    return rows["query"], rows["candidate"]
