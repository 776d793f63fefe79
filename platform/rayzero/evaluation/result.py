"""What an evaluation found: the numbers as JSON, and what a report needs to draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rayzero.evaluation.metrics.bootstrap import CONFIDENCE, Estimate
from rayzero.evaluation.metrics.classification import Classification
from rayzero.evaluation.progression import Progression
from rayzero.evaluation.sections import (
    CalibrationFit,
    Grounding,
    Retrieval,
    RetrievalTable,
    Scored,
    Segmentation,
    SemanticSegmentation,
)
from rayzero.metrics.retrieval import CUTOFFS


@dataclass(frozen=True)
class Figure:
    """A benchmark's figure twice: as papers compute it, and ``strict``; None where one of the two does not exist.

    ``rule`` says where thresholds come from, ``reference`` what papers report (by system).
    """

    key: str
    name: str
    published: Estimate | None
    strict: Estimate | None
    rule: str = ""
    chance: float | None = None
    reference: Mapping[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Estimate:
        """The strict figure, or the published one where there is no other."""
        chosen = self.strict or self.published
        assert chosen is not None
        return chosen

    def to_json(self) -> dict[str, Any]:
        """Both values, the rule, and the published numbers; undefined numbers are null."""
        return {
            "name": self.name,
            "published": self.published.to_json() if self.published else None,
            "strict": self.strict.to_json() if self.strict else None,
            "rule": self.rule,
            "chance": self.chance if self.chance is not None and math.isfinite(self.chance) else None,
            "reference": dict(self.reference),
        }


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """One bundle on one split under one protocol. A section that the protocol does not have is None."""

    protocol: str
    title: str
    system: str
    lake: str
    fingerprint: str
    split: str
    prompts: tuple[str, ...]
    geometry: Literal["stretch", "pad"]
    crop: float
    counts: Mapping[str, int]
    notes: Sequence[str]
    replicates: int
    scored: Scored
    classification: Classification | None = None
    calibration: CalibrationFit | None = None
    grounding: Grounding | None = None
    segmentation: Segmentation | None = None
    semantic: SemanticSegmentation | None = None
    retrieval: Retrieval | None = None
    progression: Progression | None = None
    figures: tuple[Figure, ...] = ()
    bootstrap_key: str = ""
    labels: str = ""
    """Digest of the table of labels in place of the lake's own; empty without one."""

    def to_json(self) -> dict[str, Any]:
        """Every figure as {"value", "low", "high", "n"}, nested by section; undefined numbers are null."""
        out: dict[str, Any] = {
            "protocol": self.protocol,
            "system": self.system,
            "lake": {"url": self.lake, "fingerprint": self.fingerprint, "split": self.split, "labels": self.labels},
            "prompts": list(self.prompts),
            "counts": dict(self.counts),
            "bootstrap": {"replicates": self.replicates, "confidence": CONFIDENCE, "unit": "patient"},
            "notes": list(self.notes),
            "headline": {
                name: {**value.to_json(), "chance": chance if math.isfinite(chance) else None}
                for name, (value, chance) in self.headline().items()
            },
        }
        if self.figures:
            out["figures"] = {one.key: one.to_json() for one in self.figures}
        if self.classification:
            out["classification"] = _classification(self.classification)
        if self.calibration:
            out["calibration"] = _calibration(self.calibration)
        if self.grounding:
            out["grounding"] = _grounding(self.grounding)
        if self.segmentation:
            out["segmentation"] = _segmentation(self.segmentation)
            out["map_threshold"] = self.segmentation.threshold
        if self.semantic:
            out["semantic_segmentation"] = _semantic(self.semantic)
        if self.retrieval:
            out["retrieval"] = _retrieval(self.retrieval)
        if self.progression:
            out["progression"] = _progression(self.progression)
        return out

    def headline(self) -> dict[str, tuple[Estimate, float]]:
        """The figures that sum up the result, by dotted name, each with its chance level (NaN where it has none)."""
        if self.figures:
            # A figure that only papers' own definition gives is not what sums up a result.
            kept = [one for one in self.figures if one.strict]
            return {f"{self.protocol}.{one.key}": (one.best, _level(one.chance)) for one in kept}
        out: dict[str, tuple[Estimate, float]] = {}
        if self.classification:
            out["classification.macro_auroc"] = (self.classification.macro_auroc, 0.5)
            for group, value in self.classification.groups.items():
                out[f"classification.{group}.macro_auroc"] = (value, 0.5)
        if self.grounding:
            out["grounding.pointing_accuracy"] = (self.grounding.pointing_accuracy, self.grounding.chance)
        if self.segmentation:
            out["segmentation.mean_dice"] = (self.segmentation.mean_dice, self.segmentation.whole_image)
        if self.semantic:
            out["semantic_segmentation.miou"] = (self.semantic.miou, math.nan)
        if self.retrieval:
            instance = self.retrieval.instance
            for cutoff, value, chance in zip(CUTOFFS, instance.mean, instance.mean_chance, strict=True):
                out[f"retrieval.recall_at_{cutoff}"] = (value, chance)
        if self.progression:
            out["progression.appeared_auroc"] = (self.progression.appeared, 0.5)
            out["progression.resolved_auroc"] = (self.progression.resolved, 0.5)
        return out

    @property
    def names(self) -> dict[str, str]:
        """The names of a benchmark's figures by their dotted names."""
        return {f"{self.protocol}.{one.key}": one.name for one in self.figures}

    def card(self) -> dict[str, Any]:
        """What a bundle's card takes from an evaluation: ``calibration``, ``map_threshold`` and ``metrics``."""
        out: dict[str, Any] = {"metrics": {name: value.to_json() for name, (value, _) in self.headline().items()}}
        if self.calibration:
            fit = self.calibration.calibration
            out["calibration"] = {"scale": fit.scale, "bias": fit.bias}
            if fit.replicates:
                out["calibration"]["replicates"] = [list(pair) for pair in fit.replicates]
        if self.segmentation:
            out["map_threshold"] = self.segmentation.threshold
        return out


def _level(chance: float | None) -> float:
    return math.nan if chance is None else chance


def _classification(part: Classification) -> dict[str, Any]:
    group_of = {name: group for group, names in part.members.items() for name in names}
    groups = {
        group: {"macro_auroc": value.to_json(), "findings": list(part.members[group])}
        for group, value in part.groups.items()
    }
    per_class = {
        name: {
            "auroc": one.auroc.to_json(),
            "auprc": one.auprc.to_json(),
            "average_precision": one.average_precision.to_json(),
            "positives": one.positives,
            "negatives": one.negatives,
            "masked": one.masked,
            "prevalence": one.prevalence,
            "group": group_of.get(name),
        }
        for name, one in part.per_class.items()
    }
    return {
        "macro_auroc": part.macro_auroc.to_json(),
        "macro_average_precision": part.macro_average_precision.to_json(),
        "macro_auprc": part.macro_auprc.to_json(),
        **groups,
        "per_class": per_class,
        "dropped": dict(part.dropped),
        "chance": {"auroc": 0.5, "average_precision": "prevalence"},
    }


def _calibration(part: CalibrationFit) -> dict[str, Any]:
    return {
        "scale": part.calibration.scale,
        "bias": part.calibration.bias,
        "fitted_on_pairs": part.fitted_on,
        "replicates": len(part.calibration.replicates),
        "expected_calibration_error": part.calibrated.expected_error,
        "expected_calibration_error_uncalibrated": part.raw.expected_error,
    }


def _grounding(part: Grounding) -> dict[str, Any]:
    return {
        "pointing_accuracy": part.pointing_accuracy.to_json(),
        **{group: {"pointing_accuracy": value.to_json()} for group, value in part.groups.items()},
        "per_finding": {
            name: {"pointing_accuracy": value.to_json(), "chance": part.chance_per_finding[name]}
            for name, value in part.per_finding.items()
        },
        "chance": part.chance,
    }


def _segmentation(part: Segmentation) -> dict[str, Any]:
    return {
        "mean_dice": part.mean_dice.to_json(),
        **{group: {"mean_dice": value.to_json()} for group, value in part.groups.items()},
        "per_finding": {
            name: {"mean_dice": value.to_json(), "whole_image": part.whole_image_per_finding[name]}
            for name, value in part.per_finding.items()
        },
        "threshold": {"logit": part.threshold, "chosen_on": "validation"},
        "oracle": {"threshold": part.oracle_threshold, "mean_dice": part.oracle_mean_dice},
        "chance": part.whole_image,
    }


def _semantic(part: SemanticSegmentation) -> dict[str, Any]:
    return {
        "miou": part.miou.to_json(),
        **{group: {"miou": value.to_json()} for group, value in part.groups.items()},
        "per_finding": {name: {"iou": value.to_json()} for name, value in part.per_finding.items()},
        "background": {"iou": part.background.to_json(), "iou_without_findings": part.nothing},
        "threshold": {"logit": part.threshold, "chosen_on": "validation"},
        "oracle": {"miou": part.oracle_miou},
    }


def _retrieval(part: Retrieval) -> dict[str, Any]:
    return {
        **_recall(part.instance.mean),
        **_directions(part.instance),
        "distinct_reports": {**_recall(part.distinct.mean), **_directions(part.distinct)},
        "chance": {f"recall_at_{k}": v for k, v in zip(CUTOFFS, part.instance.mean_chance, strict=True)},
        "images": len(part.study_ids),
        "reports": len(part.gallery.reports),
    }


def _progression(part: Progression) -> dict[str, Any]:
    return {
        "appeared_auroc": part.appeared.to_json(),
        "resolved_auroc": part.resolved.to_json(),
        "pairs": part.pairs,
        "appearances": part.appearances,
        "resolutions": part.resolutions,
        "chance": 0.5,
    }


def _directions(table: RetrievalTable) -> dict[str, Any]:
    return {
        name: {
            **_recall(values),
            "chance": {f"recall_at_{k}": v for k, v in zip(CUTOFFS, table.chance[name], strict=True)},
        }
        for name, values in table.recall.items()
    }


def _recall(values: Sequence[Estimate]) -> dict[str, Any]:
    return {f"recall_at_{cutoff}": value.to_json() for cutoff, value in zip(CUTOFFS, values, strict=True)}
