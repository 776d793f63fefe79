"""The figures of benchmarks: each as published and strict, with the origin of its threshold in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.special import expit

from rayzero.evaluation.benchmark import Benchmark, Measured
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.metrics import operating
from rayzero.evaluation.metrics import segmentation as dice
from rayzero.evaluation.metrics.bootstrap import Bootstrap, Estimate, Float, macro
from rayzero.evaluation.metrics.classification import MASKED, classify, micro_areas, prevalence_weighted
from rayzero.evaluation.result import Figure
from rayzero.evaluation.sections import Scored
from rayzero.metrics import retrieval

ORACLE = "oracle: chosen on the evaluated images themselves"
_VALIDATED = "chosen on validation images"
_CROSSED = "chosen on other patients of the split, in ten folds"
_ANSWERS = {
    "mcc": "MCC",
    "f1": "F1",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "precision": "Precision",
    "recall": "Sensitivity",
    "specificity": "Specificity",
    "weighted_f1": "F1 of yes and no, weighted",
}
_IOU_AT = (0.1, 0.2, 0.3, 0.4, 0.5)


def areas(benchmark: Benchmark, measured: Measured) -> list[Figure]:
    """AUROC macro, micro and weighted by prevalence; AUPRC in both of its definitions; AUROC of each group.

    No threshold: published and strict differ only where the strict figure leaves classes or views out.
    """
    part = measured.classification
    if part is None:
        return []
    logits, labels = measured.test.logits, measured.test.labels
    micro = micro_areas(logits, labels)
    share = float(np.mean([one.prevalence for one in part.per_class.values()])) if part.per_class else math.nan
    pairs = int((labels != MASKED).sum())
    figures = [
        Figure("macro_auroc", "Macro AUROC", part.macro_auroc, part.macro_auroc, chance=0.5),
        Figure("micro_auroc", "Micro AUROC", point(micro.auroc[0], pairs), None, chance=0.5),
        Figure("weighted_auroc", "AUROC by prevalence", point(prevalence_weighted(part), pairs), None, chance=0.5),
        Figure("macro_auprc", "Macro AUPRC, trapezoids", part.macro_auprc, None, chance=share),
        Figure("micro_auprc", "Micro AUPRC, trapezoids", point(micro.trapezoid[0], pairs), None),
        Figure(
            "macro_average_precision", "Macro average precision", part.macro_average_precision,
            part.macro_average_precision, chance=share,
        ),
    ]  # fmt: skip
    if len(part.groups) > 1:
        figures += [
            Figure(f"{group}_auroc", f"Macro AUROC, {group.replace('_', ' ')}", value, value, chance=0.5)
            for group, value in part.groups.items()
            if part.members[group]
        ]
    return referenced(benchmark, figures)


def without(
    benchmark: Benchmark, measured: Measured, *, classes: frozenset[str], views: tuple[str, ...]
) -> list[Figure]:
    """A strict macro AUROC that leaves out ``classes`` that are no findings and images of other ``views``."""
    test = measured.test
    rows = [place for place, one in enumerate(test.images) if one.view in views]
    columns = [place for place, name in enumerate(test.findings) if name not in classes]
    if not rows or not columns:
        return []
    names = [test.findings[place] for place in columns]
    patients = [test.patients[place] for place in rows]
    labels, logits = test.labels[np.ix_(rows, columns)], test.logits[np.ix_(rows, columns)]
    part = classify(logits, labels, names, patients, measured.bootstrap, {})
    left = f"{' and '.join(views)} images, {len(names)} findings"
    return [Figure("findings_auroc", "Macro AUROC of findings", None, part.macro_auroc, left, chance=0.5)]


def answers(benchmark: Benchmark, measured: Measured, *, criterion: operating.Criterion) -> list[Figure]:
    """Accuracy, F1, MCC and their like at one threshold per class: the oracle's, and the strict one."""
    test, validation = measured.test, measured.validation
    logits, labels = test.logits, test.labels
    usable = [c for c in range(len(test.findings)) if (labels[:, c] == 1).any() and (labels[:, c] == 0).any()]
    if not usable:
        return []
    oracle, strict = (np.zeros((len(logits), len(usable)), dtype=bool) for _ in range(2))
    crossed = 0
    for place, column in enumerate(usable):
        known = labels[:, column] != MASKED
        scores, truth = logits[known, column], labels[known, column] == 1
        patients = [name for name, keep in zip(test.patients, known, strict=True) if keep]
        oracle[:, place] = logits[:, column] >= operating.choose_threshold(scores, truth, criterion)
        chosen = _validated(validation, column, criterion)
        if chosen is None:
            crossed += 1
            strict[known, place] = operating.cross_fitted(scores, truth, patients, criterion)
        else:
            strict[:, place] = logits[:, column] >= chosen
    kept = labels[:, usable]
    published = operating.answer_figures(oracle, kept, test.patients, measured.bootstrap)
    honest = operating.answer_figures(strict, kept, test.patients, measured.bootstrap)
    origin = _CROSSED if crossed == len(usable) else _VALIDATED
    if 0 < crossed < len(usable):
        origin = f"{_VALIDATED}; of {crossed} classes without both labels there, {_CROSSED}"
    rule = {"corner": "nearest to the corner of the ROC", "mcc": "best MCC", "f1": "best F1"}[criterion]
    words = f"published: {rule}, {ORACLE}; strict: {rule}, {origin}"
    figures = [Figure(name, title, published[name], honest[name], words) for name, title in _ANSWERS.items()]
    return referenced(benchmark, figures)


def top_labels(benchmark: Benchmark, measured: Measured) -> list[Figure]:
    """Recall@1 and Precision@3 of labels per volume, after z-scoring each class over the split (datasets spec, 5.1)."""
    test = measured.test
    logits, labels = test.logits, test.labels == 1
    spread = logits.std(axis=0)
    scores = (logits - logits.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    order = np.argsort(-scores, axis=1, kind="stable")
    hit = np.take_along_axis(labels, order, axis=1)
    some = labels.any(axis=1)
    owners = [name for name, keep in zip(test.patients, some, strict=True) if keep]
    figures = []
    if some.any():
        recall = hit[some, 0] / labels[some].sum(axis=1)
        figures.append(Figure("recall_at_1", "Recall@1 of labels", measured.bootstrap.mean(recall, owners), None))
    if labels.shape[1] >= 3:
        precision = hit[:, :3].sum(axis=1) / 3
        figures.append(
            Figure("precision_at_3", "Precision@3 of labels", measured.bootstrap.mean(precision, test.patients), None)
        )
    return referenced(benchmark, figures)


def accuracy(benchmark: Benchmark, measured: Measured) -> list[Figure]:
    """Single-label accuracy of the highest score, plain and balanced."""
    test = measured.test
    try:
        found = operating.single_label_figures(test.logits, test.labels, test.patients, measured.bootstrap)
    except ValueError as error:
        raise EvaluationError(f"{test.truth.where}: {error}") from None
    chance = 1.0 / len(test.findings)
    names = {"accuracy": "Accuracy of the highest score", "balanced_accuracy": "Balanced accuracy"}
    return referenced(benchmark, [Figure(key, names[key], value, value, chance=chance) for key, value in found.items()])


def folds(benchmark: Benchmark, measured: Measured) -> list[Figure]:
    """ALTA's accuracy and F1 on RSNA: thresholds of ten stratified folds of the test images."""
    test = measured.test
    known = test.labels[:, 0] != MASKED
    truth = test.labels[known, 0] == 1
    # Digits that the way through logits may have changed must not move a probability off the grid of thresholds.
    probability = np.round(expit(test.logits[known, 0]), 12)
    try:
        found = operating.stratified_folds(probability, truth)
    except ValueError as error:
        raise EvaluationError(f"{test.truth.where}: {error}") from None
    rule = "best F1 of 0, 0.005, ..., 1 on nine stratified folds of the test images, applied to the tenth"
    return referenced(
        benchmark,
        [Figure(f"folds_{name}", f"{'F1' if name == 'f1' else 'Accuracy'}, ten stratified folds",
                point(value, len(truth)), None, rule) for name, value in found.items()],
    )  # fmt: skip


def pointing(benchmark: Benchmark, measured: Measured) -> list[Figure]:
    """The pointing game: mean of findings, or of phrases where the benchmark grounds these."""
    hits: dict[str, tuple[list[float], list[str]]] = {}
    chances: dict[str, list[float]] = {}
    for one in measured.test.images:
        for region in one.regions:
            if region.hit is not None:
                name = "phrases" if benchmark.phrases else region.finding
                _add(hits, name, float(region.hit), one.patient_id)
                chances.setdefault(name, []).append(region.chance or 0.0)
    if not hits:
        raise EvaluationError(f"{measured.test.truth.where} has no boxes; ingest the corpus with its box table")
    value = _macro(hits, measured.bootstrap)
    chance = float(np.mean([np.mean(each) for each in chances.values()]))
    return referenced(benchmark, [Figure("pointing", "Pointing accuracy", value, value, chance=chance)])


def phrase_overlap(benchmark: Benchmark, measured: Measured) -> list[Figure]:
    """CNR, absolute and signed, and mIoU: the mean over pairs of image and phrase, and over categories."""
    test = measured.test
    signed: dict[str, tuple[list[float], list[str]]] = {}
    overlap: dict[str, tuple[list[float], list[str]]] = {}
    columns = [int(np.argmin(np.abs(dice.PROBABILITIES - t))) for t in _IOU_AT]
    pixels: list[dice.Histograms] = []
    for one in test.images:
        categories = {r.phrase: r.finding for r in test.truth.studies[one.study_id].regions}
        for region in one.regions:
            if region.contrast is None or region.histograms is None or not region.histograms.positive:
                continue
            category = categories[region.finding]
            _add(signed, category, region.contrast, one.patient_id)
            _add(overlap, category, float(dice.iou_at_probabilities(region.histograms)[columns].mean()), one.patient_id)
            pixels.append(region.histograms)
    if not signed:
        raise EvaluationError(f"{test.truth.where} has no phrases with boxes; ingest MS-CXR with its table")
    absolute = {name: ([abs(v) for v in values], owners) for name, (values, owners) in signed.items()}
    area, bound = dice.pixel_auroc(pixels)
    auroc = point(area, len(pixels))
    union = "one mask per image and phrase"
    each, wide = _pooled(overlap, measured.bootstrap), _macro(overlap, measured.bootstrap)
    steps = "sigmoid of the map above 0.1, 0.2, ..., 0.5, mean of the five"
    figures = [
        Figure("cnr", "CNR, absolute", _pooled(absolute, measured.bootstrap), None, union),
        Figure("macro_cnr", "CNR, absolute, mean of categories", _macro(absolute, measured.bootstrap), None, union),
        Figure("signed_cnr", "CNR, signed", None, _pooled(signed, measured.bootstrap), union, chance=0.0),
        Figure("miou", "mIoU", each, each, steps),
        Figure("macro_miou", "mIoU, mean of categories", wide, wide, steps),
        Figure("pixel_auroc", "Pixel AUROC in boxes", auroc, auroc, _bin(bound), chance=0.5),
    ]
    return referenced(benchmark, figures)


def segmentation(benchmark: Benchmark, measured: Measured) -> list[Figure]:
    """Dice of positives, specificity of negatives at that threshold, pixel AUROC of both (datasets spec, 5.3)."""
    test = measured.test
    found = _segmented(test)
    marked = [(one, owner) for one, owner in found if one.positive]
    clear = [(one, owner) for one, owner in found if not one.positive]
    if not marked:
        raise EvaluationError(f"{test.truth.where} has no masks; ingest the corpus with its masks")
    owners = [owner for _, owner in marked]
    curves = np.stack([dice.dice_at_probabilities(one) for one, _ in marked])
    best = dice.best_threshold(curves.mean(axis=0))
    fine = np.stack([dice.dice_at_thresholds(one) for one, _ in marked])
    tuning = _segmented(measured.validation) if measured.validation else []
    tuned = [one for one, _ in tuning if one.positive]
    if tuned:
        at = dice.best_threshold(np.mean([dice.dice_at_thresholds(one) for one in tuned], axis=0))
        columns = dict.fromkeys(range(10), at)
        origin = f"map logit above {dice.THRESHOLDS[at]:.2f}, {_VALIDATED}"
    else:
        columns = _crossed_columns(fine, owners)
        origin = f"map logit, {_CROSSED}"
    strict = np.array([curve[columns[operating.fold_of(owner)]] for curve, owner in zip(fine, owners, strict=True)])
    rule = f"published: sigmoid above {dice.PROBABILITIES[best]:.2f}, {ORACLE}; strict: {origin}"
    figures = [
        Figure("dice", "Dice of positive images", measured.bootstrap.mean(curves[:, best], owners),
               measured.bootstrap.mean(strict, owners), rule,
               chance=float(np.mean([dice.whole_image_dice(one) for one, _ in marked]))),
    ]  # fmt: skip
    if clear:
        patients = [owner for _, owner in clear]
        empty = np.array([dice.empty_at_probabilities(one)[best] for one, _ in clear])
        kept = np.array([dice.empty_at_thresholds(one)[columns[operating.fold_of(owner)]] for one, owner in clear])
        figures.append(
            Figure("specificity", "Specificity: no pixel above", measured.bootstrap.mean(empty.astype(float), patients),
                   measured.bootstrap.mean(kept.astype(float), patients), rule)
        )  # fmt: skip
    area, bound = dice.pixel_auroc(one for one, _ in found)
    auroc = point(area, len(found))
    figures.append(Figure("pixel_auroc", "Pixel AUROC", auroc, auroc, _bin(bound), chance=0.5))
    return referenced(benchmark, figures)


def measure(function: Callable[..., list[Figure]], **settings: object) -> Callable[[Benchmark, Measured], list[Figure]]:
    """``function`` with its settings, as a benchmark's measure."""
    return partial(function, **settings)


def point(value: float, n: int) -> Estimate:
    """A figure without interval."""
    return Estimate(float(value), math.nan, math.nan, n)


def referenced(benchmark: Benchmark, figures: Sequence[Figure]) -> list[Figure]:
    """``figures`` with what papers report of each."""
    return [replace(one, reference=benchmark.reference.get(one.key, {})) for one in figures]


def first_labels(scored: Scored) -> list[str]:
    """The only positive class of each image. Raises EvaluationError for an image with none or several."""
    labels = scored.labels == 1
    for one, row in zip(scored.images, labels, strict=True):
        if row.sum() != 1:
            raise EvaluationError(
                f"{scored.truth.where}: {one.study_id} has {int(row.sum())} positive classes, not one"
            )
    return [scored.findings[int(place)] for place in labels.argmax(axis=1)]


def precision_figures(
    benchmark: Benchmark,
    similarity: Float,
    relevant: np.ndarray,  # type: ignore[type-arg]
    owners: Sequence[str],
    cutoffs: Sequence[int],
    bootstrap: Bootstrap,
    prefix: str = "",
    what: str = "",
) -> list[Figure]:
    """P@K of queries (Q, M) for each cutoff that the candidates are enough for."""
    usable = [cutoff for cutoff in cutoffs if cutoff <= similarity.shape[1]]
    if not usable:
        return []
    found = retrieval.precision_at(similarity, relevant, usable)
    figures = []
    for place, cutoff in enumerate(usable):
        value = bootstrap.mean(found[:, place], owners)
        key, name = f"{prefix}precision_at_{cutoff}", f"P@{cutoff}{what}"
        figures.append(Figure(key, name, value, value, "ties: wrong answers first", chance=float(relevant.mean())))
    return referenced(benchmark, figures)


def _validated(validation: Scored | None, column: int, criterion: operating.Criterion) -> float | None:
    """The threshold that is best on validation, None where a label is missing there."""
    if validation is None:
        return None
    labels = validation.labels[:, column]
    known = labels != MASKED
    truth = labels[known] == 1
    if not truth.any() or truth.all():
        return None
    return operating.choose_threshold(validation.logits[known, column], truth, criterion)


def _segmented(scored: Scored) -> list[tuple[dice.Histograms, str]]:
    """The histograms of every region that was compared with a mask, with its patient."""
    return [
        (region.histograms, one.patient_id)
        for one in scored.images
        for region in one.regions
        if region.histograms is not None
    ]


def _crossed_columns(curves: Float, owners: Sequence[str]) -> dict[int, int]:
    """The best column for each tenth of the patients, by the curves (n, K) of the others; without any, logit 0."""
    tenths = np.array([operating.fold_of(owner) for owner in owners])
    columns = {}
    for fold in range(10):
        others = curves[tenths != fold]
        columns[fold] = dice.best_threshold(others.mean(axis=0)) if len(others) else dice.UNTAUGHT
    return columns


def _add(found: dict[str, tuple[list[float], list[str]]], key: str, value: float, owner: str) -> None:
    values, owners = found.setdefault(key, ([], []))
    values.append(value)
    owners.append(owner)


def _macro(found: Mapping[str, tuple[list[float], list[str]]], bootstrap: Bootstrap) -> Estimate:
    return macro({name: (np.array(values), owners) for name, (values, owners) in sorted(found.items())}, bootstrap)[1]


def _pooled(found: Mapping[str, tuple[list[float], list[str]]], bootstrap: Bootstrap) -> Estimate:
    """The mean over all values, whatever their name."""
    values = np.concatenate([values for values, _ in found.values()])
    return bootstrap.mean(values, [owner for _, owners in found.values() for owner in owners])


def _bin(bound: float) -> str:
    return f"from histograms, exact to {bound:.1g}"
