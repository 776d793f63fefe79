"""The sections of an evaluation: from scored images and the lake's truth to figures with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayzero.bundle import Calibration
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.metrics import calibration as platt
from rayzero.evaluation.metrics import segmentation as dice
from rayzero.evaluation.metrics import semantic
from rayzero.evaluation.metrics.bootstrap import Bootstrap, Estimate, Float, estimate, macro, mean_defined
from rayzero.evaluation.metrics.classification import MASKED, Classification, Labels, classify
from rayzero.evaluation.records import ImageScores
from rayzero.evaluation.truth import Truth
from rayzero.metrics import retrieval as ranking

Groups = Mapping[str, Sequence[str]]

BACKGROUND = "background"
DIRECTIONS = ("image_to_report", "report_to_image")


@dataclass(frozen=True)
class Scored:
    """A split with its truth and its scores; ``findings`` are the columns of every image's logits."""

    truth: Truth
    images: Sequence[ImageScores]
    findings: tuple[str, ...]

    @property
    def patients(self) -> list[str]:
        """The patient of each image."""
        return [one.patient_id for one in self.images]

    @property
    def logits(self) -> Float:
        """Class logits (N, C)."""
        return np.stack([one.logits for one in self.images]).astype(np.float64)

    @property
    def labels(self) -> Labels:
        """Labels (N, C) in {1, 0, MASKED}."""
        return self.truth.labels([one.study_id for one in self.images], self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """How much the split holds, and how much of it was scored."""
        studies = {one.study_id for one in self.images}
        return {
            "patients": len(set(self.patients)),
            "studies": len(studies),
            "images": len(self.images),
            "studies_not_scored": len(self.truth.studies) - len(studies),
        }


@dataclass(frozen=True)
class Grounding:
    """Pointing accuracy: mean over (image, finding) pairs with boxes per finding, then over findings.

    ``chance`` is the same mean for a point drawn at random in the image.
    """

    pointing_accuracy: Estimate
    groups: Mapping[str, Estimate]
    per_finding: Mapping[str, Estimate]
    chance: float
    chance_per_finding: Mapping[str, float]


@dataclass(frozen=True)
class Segmentation:
    """Dice over positive images per finding, then over findings, at a ``threshold`` (logit) chosen on validation.

    ``oracle_*`` take the threshold that is best on the evaluated split itself, as published tables do: an upper
    bound, never a result. ``whole_image`` is the Dice of marking every pixel. Curves (K,) are over ``THRESHOLDS``.
    """

    mean_dice: Estimate
    groups: Mapping[str, Estimate]
    per_finding: Mapping[str, Estimate]
    threshold: float
    oracle_threshold: float
    oracle_mean_dice: float
    whole_image: float
    whole_image_per_finding: Mapping[str, float]
    curve: Float
    validation_curve: Float


@dataclass(frozen=True)
class SemanticSegmentation:
    """IoU of pixels given to the finding whose map is highest, or to none below ``threshold`` (logit, of validation).

    Intersection and union are over all pixels of the split; ``miou`` and ``groups`` are unweighted means over findings.
    ``nothing`` is the background's IoU when every pixel is given to it.
    """

    miou: Estimate
    groups: Mapping[str, Estimate]
    per_finding: Mapping[str, Estimate]
    background: Estimate
    nothing: float
    threshold: float
    oracle_miou: float


@dataclass(frozen=True)
class RetrievalTable:
    """Recall at each of ``CUTOFFS`` per direction, their mean over directions, and what a random order reaches."""

    recall: Mapping[str, tuple[Estimate, ...]]
    mean: tuple[Estimate, ...]
    chance: Mapping[str, tuple[float, ...]]

    @property
    def mean_chance(self) -> tuple[float, ...]:
        """Chance recall at each cutoff, the mean over directions."""
        return tuple(float(value) for value in np.mean([self.chance[name] for name in DIRECTIONS], axis=0))


@dataclass(frozen=True)
class Retrieval:
    """``instance``: the paired item among N; ``distinct``: equal reports are one candidate. One image per study."""

    instance: RetrievalTable
    distinct: RetrievalTable
    study_ids: tuple[str, ...]
    gallery: ranking.Gallery


@dataclass(frozen=True)
class CalibrationFit:
    """Platt scaling fitted on validation, and the reliability of the evaluated split without and with it."""

    calibration: Calibration
    fitted_on: int
    raw: platt.Reliability
    calibrated: platt.Reliability


def classification(scored: Scored, bootstrap: Bootstrap, groups: Groups) -> Classification:
    """AUROC of the split. Raises EvaluationError when no finding has both positive and negative images."""
    result = classify(scored.logits, scored.labels, scored.findings, scored.patients, bootstrap, groups)
    if not result.per_class:
        raise EvaluationError(
            f"{scored.truth.where}: no finding has both positive and negative images; evaluate a larger split"
        )
    return result


def calibration(validation: Scored, test: Scored) -> CalibrationFit:
    """Platt scaling on the (image, finding) pairs of validation findings that have both labels there.

    A finding that never occurs in validation would only teach the scale that its logits mean nothing. Fits on draws
    of the validation patients are kept for intervals of the probabilities.
    """
    labels = validation.labels
    usable = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
    if not usable.any():
        raise EvaluationError(
            f"{validation.truth.where}: no finding has both positive and negative images, and calibration is fitted "
            "there; ingest more validation studies"
        )
    logits, truth = _pairs(validation.logits[:, usable], labels[:, usable])
    rows, _ = np.nonzero(labels[:, usable] != MASKED)
    patients = validation.patients
    fit = platt.fit_with_replicates(logits, truth, [patients[row] for row in rows])
    tested, answers = _pairs(test.logits, test.labels)
    raw = platt.reliability(Calibration().probability(tested), answers)
    return CalibrationFit(fit, len(logits), raw, platt.reliability(fit.probability(tested), answers))


def grounding(scored: Scored, bootstrap: Bootstrap, groups: Groups) -> Grounding:
    """The pointing game on every (image, finding) pair with boxes. Raises EvaluationError when there is none."""
    hits, chances = (_by_finding(scored, name) for name in ("hit", "chance"))
    if not hits:
        raise EvaluationError(f"{scored.truth.where} has no boxes; ingest the corpus with its box table")
    per_finding, overall = macro(hits, bootstrap)
    chance = {name: float(np.mean(values)) for name, (values, _) in chances.items()}
    grouped = {group: _macro_of(hits, names, bootstrap) for group, names in groups.items()}
    return Grounding(overall, grouped, per_finding, float(np.mean(list(chance.values()))), chance)


def segmentation(validation: Scored, test: Scored, bootstrap: Bootstrap, groups: Groups) -> Segmentation:
    """Dice at the threshold that is best on validation. Raises EvaluationError when a split has no masks."""
    curves, tuning = dice_curves(test), dice_curves(validation)
    validation_curve = dice.macro_curve({name: values for name, (values, _) in tuning.items()})
    curve = dice.macro_curve({name: values for name, (values, _) in curves.items()})
    chosen, oracle = dice.best_threshold(validation_curve), dice.best_threshold(curve)
    fixed = {name: (values[:, chosen], patients) for name, (values, patients) in curves.items()}
    per_finding, overall = macro(fixed, bootstrap)
    whole: dict[str, list[float]] = {}
    for one in test.images:
        for region in one.regions:
            if region.histograms is not None and region.histograms.positive:
                whole.setdefault(region.finding, []).append(dice.whole_image_dice(region.histograms))
    baseline = {name: float(np.mean(values)) for name, values in whole.items()}
    return Segmentation(
        mean_dice=overall,
        groups={group: _macro_of(fixed, names, bootstrap) for group, names in groups.items()},
        per_finding=per_finding,
        threshold=float(dice.THRESHOLDS[chosen]),
        oracle_threshold=float(dice.THRESHOLDS[oracle]),
        oracle_mean_dice=float(curve[oracle]),
        whole_image=float(np.mean(list(baseline.values()))),
        whole_image_per_finding=baseline,
        curve=curve,
        validation_curve=validation_curve,
    )


def semantic_segmentation(
    validation: Scored, test: Scored, bootstrap: Bootstrap, groups: Groups, among: Sequence[str]
) -> SemanticSegmentation:
    """IoU of the findings ``among`` that have a mask, with the background threshold of validation."""
    tuning, images = ([one.assigned for one in part.images if one.assigned] for part in (validation, test))
    curve = semantic.iou_curve(images)
    chosen = semantic.best_background(semantic.iou_curve(tuning))
    found = semantic.iou_estimates(images, [*among, BACKGROUND], test.patients, bootstrap, chosen)
    background = found.pop(BACKGROUND)
    sizes = np.sum([one.size for one in images], axis=0)
    pixels = sum(int(one.predicted[:, 0].sum()) for one in images)
    oracle = mean_defined(curve[:-1], axis=0)
    return SemanticSegmentation(
        miou=_mean_iou(found, list(found)),
        groups={group: _mean_iou(found, names) for group, names in groups.items()},
        per_finding=found,
        background=background,
        nothing=float(sizes[-1] / pixels),
        threshold=float(semantic.BACKGROUND_THRESHOLDS[chosen]),
        oracle_miou=float(oracle.max()),
    )


def _mean_iou(found: Mapping[str, Estimate], names: Sequence[str]) -> Estimate:
    kept = [found[name] for name in names if name in found]
    if not kept:
        return Estimate(math.nan, math.nan, math.nan, 0)
    drawn = [one.samples for one in kept if one.samples is not None]
    samples = mean_defined(np.stack(drawn), axis=0) if drawn else np.empty(0)
    return estimate(float(np.mean([one.value for one in kept])), samples, sum(one.n for one in kept))


def dice_curves(scored: Scored) -> dict[str, tuple[Float, list[str]]]:
    """Dice (n, K) of each finding's positive images at every threshold, and their patients."""
    curves: dict[str, tuple[list[Float], list[str]]] = {}
    for one in scored.images:
        for region in one.regions:
            if region.histograms is not None and region.histograms.positive:
                values, patients = curves.setdefault(region.finding, ([], []))
                values.append(dice.dice_at_thresholds(region.histograms))
                patients.append(one.patient_id)
    if not curves:
        raise EvaluationError(f"{scored.truth.where} has no masks; ingest the corpus with its masks")
    return {name: (np.stack(curves[name][0]), curves[name][1]) for name in sorted(curves)}


def retrieval(scored: Scored, bootstrap: Bootstrap) -> Retrieval:
    """R@K both ways over the studies with sentences, by their first image.

    Raises EvaluationError when fewer than two studies have sentences.
    """
    first: dict[str, ImageScores] = {}
    for one in scored.images:
        first.setdefault(one.study_id, one)
    pairs = [(one, scored.truth.studies[name].said) for name, one in first.items()]
    pairs = [(one, report) for one, report in pairs if report]
    if len(pairs) < 2:
        raise EvaluationError(
            f"{scored.truth.where} has {len(pairs)} studies with report sentences and retrieval needs two; ingest "
            "the corpus with its reports"
        )
    images, reports = [one for one, _ in pairs], [report for _, report in pairs]
    gallery = ranking.build_gallery(np.stack([one.sentences for one in images]), scored.truth.sentences, reports)
    patients = [one.patient_id for one in images]
    ones = np.ones(len(images))
    described = np.bincount(gallery.own)
    to_report, to_image = ranking.distinct_ranks(gallery)
    paired = ranking.chance_recall(len(images), ones)
    instance = _table(ranking.instance_ranks(gallery), (paired, paired), patients, bootstrap)
    # A report asks once per study that has it, so that both directions have the same queries and patients.
    shared = ranking.chance_recall(len(images), described[gallery.own])
    chance = (ranking.chance_recall(len(gallery.reports), ones), shared)
    distinct = _table((to_report, to_image[gallery.own]), chance, patients, bootstrap)
    return Retrieval(instance, distinct, tuple(one.study_id for one in images), gallery)


def _table(
    ranks: Sequence[ranking.Ranks], chance: Sequence[Float], patients: Sequence[str], bootstrap: Bootstrap
) -> RetrievalTable:
    hits = [ranking.recall_hits(values) for values in ranks]
    columns = range(len(ranking.CUTOFFS))
    return RetrievalTable(
        recall={
            name: tuple(bootstrap.mean(values[:, k], patients) for k in columns)
            for name, values in zip(DIRECTIONS, hits, strict=True)
        },
        mean=tuple(bootstrap.mean((hits[0][:, k] + hits[1][:, k]) / 2, patients) for k in columns),
        chance={name: tuple(float(v) for v in values) for name, values in zip(DIRECTIONS, chance, strict=True)},
    )


def _by_finding(scored: Scored, name: str) -> dict[str, tuple[Float, list[str]]]:
    found: dict[str, tuple[list[float], list[str]]] = {}
    for one in scored.images:
        for region in one.regions:
            value = getattr(region, name)
            if value is not None:
                values, patients = found.setdefault(region.finding, ([], []))
                values.append(float(value))
                patients.append(one.patient_id)
    return {finding: (np.array(found[finding][0]), found[finding][1]) for finding in sorted(found)}


def _macro_of(items: Mapping[str, Any], names: Sequence[str], bootstrap: Bootstrap) -> Estimate:
    return macro({name: items[name] for name in names if name in items}, bootstrap)[1]


def _pairs(logits: Float, labels: Labels) -> tuple[Float, Labels]:
    kept = labels != MASKED
    return logits[kept], labels[kept]
