"""Zero-shot figures of the validation split: classification, pointing and retrieval, each image and text encoded once.

The same definitions as an evaluation's: ``classification.macro_auroc``, ``grounding.pointing_accuracy`` and the
recall from image to report of paired items.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from rayzero.alignment.base import AlignmentModel, ImageFeatures
from rayzero.alignment.encoded import EncodedTexts, encode_texts
from rayzero.config import Config
from rayzero.metrics.grounding import first_peak, pointing_hit
from rayzero.metrics.retrieval import CUTOFFS, build_gallery, instance_ranks, recall_hits
from rayzero.studies.errors import LakeError
from rayzero.studies.examples import geometry_of, stacked
from rayzero.studies.lake import RowGroup
from rayzero.studies.loading import Source, read_examples
from rayzero.training.errors import TrainingError
from rayzero.training.validation_images import Key, Known, ValidationImages

Float32 = np.ndarray[Any, np.dtype[np.float32]]

FIGURES = ("macro_auroc", "pointing_accuracy", *(f"report_recall_at_{cutoff}" for cutoff in CUTOFFS))


@dataclass(frozen=True)
class ScoredImage:
    """One image: logits of the findings (F,), whether the map of each marked one points at it, and of a study of the
    gallery the logits of the gallery's sentences (S,)."""

    key: Key
    logits: Float32
    hits: Mapping[str, bool]
    sentences: Float32 | None


class ZeroShot:
    """A model with the texts of a split encoded, ready to score its row groups on this process."""

    def __init__(self, model: AlignmentModel, source: Source, truth: ValidationImages, config: Config) -> None:
        self._model, self._source, self._truth, self._config = model, source, truth, config
        self._gallery = frozenset(truth.gallery(config.training.retrieval_studies))
        self._column = {name: column for column, name in enumerate(truth.findings)}
        prompts = [config.evaluation.prompt.replace("{}", name) for name in truth.findings]
        self._prompts = encode_texts(model.encode_prompts, prompts)
        self._sentences = encode_texts(model.encode_prompts, _sentences(truth, sorted(self._gallery)))

    def score(self, group: RowGroup) -> Iterator[ScoredImage]:
        """The images of one row group. Raises TrainingError for a logit that is not finite."""
        examples = read_examples(self._source, group)
        keys = list(zip(*(examples.column(name).to_pylist() for name in ("study_id", "image_id")), strict=True))
        images = torch.from_numpy(stacked(examples))
        present = torch.tensor(examples.column("present").to_pylist(), dtype=torch.bool)
        device = self._model.device
        for rows in torch.arange(len(keys)).split(self._config.evaluation.batch_size):
            batch = images[rows].to(device)
            given = {"features": batch} if self._source.prepared else {"pixels": batch}
            views = present[rows].to(device) if present.shape[1] else None
            yield from self._score(self._model.encode_image(**given, present=views), [keys[row] for row in rows])

    def _score(self, features: ImageFeatures, keys: Sequence[Key]) -> Iterator[ScoredImage]:
        gone = next((key for key in keys if key not in self._truth.images), None)
        if gone is not None:
            raise LakeError(
                f"image {gone[1]} is in the feature cache and not in the lake: remove the cache, see data.cache"
            )
        known = [self._truth.images[key] for key in keys]
        logits = self._logits(features, self._prompts)
        asked = [row for row, key in enumerate(keys) if key in self._gallery]
        said = self._logits(features.rows(torch.tensor(asked)), self._sentences) if asked else logits[:0]
        said_by = dict(zip(asked, said, strict=True))
        hits = self._hits(features, keys, known)
        for row, key in enumerate(keys):
            if not (np.isfinite(logits[row]).all() and np.isfinite(said_by.get(row, 0.0)).all()):
                raise TrainingError(f"the model gave a logit that is not finite for validation image {key[1]}")
            yield ScoredImage(key, logits[row], hits.get(row, {}), said_by.get(row))

    def _hits(self, features: ImageFeatures, keys: Sequence[Key], known: Sequence[Known]) -> dict[int, dict[str, bool]]:
        """By row: whether the peak of each marked finding's map, at the image's own size, is in its region."""
        rows = [row for row, one in enumerate(known) if one.marked]
        if not rows:
            return {}
        marked = features.rows(torch.tensor(rows))
        maps: dict[str, Float32] = {}
        for name in sorted({name for row in rows for name in known[row].marked}):
            text = self._prompts.one(self._column[name])
            maps[name] = self._model.similarity_map(marked, text)[:, 0].float().cpu().numpy()
        return {
            row: {name: self._points(maps[name][index], known[row], name, keys[row]) for name in known[row].marked}
            for index, row in enumerate(rows)
        }

    def _points(self, grid: Float32, known: Known, finding: str, key: Key) -> bool:
        geometry = geometry_of(known.shape, known.spacing_mm, self._config.data)
        values = geometry.restore(np.ascontiguousarray(grid, dtype=np.float32))
        regions = known.regions()[finding]
        boxes = [region.box for region in regions if region.box is not None]
        masks = [] if boxes else [region.mask.array() for region in regions if region.mask is not None]
        if any(mask.shape != values.shape for mask in masks):
            raise LakeError(
                f"image {key[1]}: a mask of {finding!r} is {masks[0].shape}, the image {values.shape}; ingest it again"
            )
        hit = pointing_hit(first_peak(values), boxes, np.logical_or.reduce(masks) if masks else None)
        assert hit is not None
        return hit

    def _logits(self, features: ImageFeatures, texts: EncodedTexts) -> Float32:
        return texts.logits(lambda part: self._model.score(features, part).float().cpu().numpy(), len(features.pooled))


def figures(scored: Sequence[ScoredImage], truth: ValidationImages, config: Config) -> dict[str, float]:
    """``validation/...`` of all images of the split, in any order.

    ``macro_auroc`` is over findings with both classes, which ``findings`` counts; not a number where there is none.
    ``pointing_accuracy`` and ``report_recall_at_K`` are left out where ``why_absent`` says why.
    """
    values = _auroc(scored, truth)
    found = {"macro_auroc": float(np.mean(list(values.values()))) if values else math.nan, "findings": len(values)}
    hits: dict[str, list[bool]] = {}
    for one in scored:
        for name, hit in one.hits.items():
            hits.setdefault(name, []).append(hit)
    if hits:
        found["pointing_accuracy"] = float(np.mean([np.mean(hits[name]) for name in sorted(hits)]))
    # Not in the order in which processes scored them: rounding would follow it.
    rows = {one.key: one.sentences for one in scored if one.sentences is not None}
    keys = truth.gallery(config.training.retrieval_studies)
    if len(keys) > CUTOFFS[0]:
        reports = [truth.images[key].report for key in keys]
        gallery = build_gallery(np.stack([rows[key] for key in keys]), _sentences(truth, keys), reports)
        recall = recall_hits(instance_ranks(gallery)[0]).mean(axis=0)
        found |= {
            f"report_recall_at_{cutoff}": float(value)
            for cutoff, value in zip(CUTOFFS, recall, strict=True)
            if cutoff < len(keys)
        }
    return {f"validation/{name}": float(value) for name, value in found.items()}


def why_absent(figure: str, truth: ValidationImages, config: Config) -> str | None:
    """Why validation on ``truth`` cannot give ``figure``, one of ``FIGURES``, and the remedy; None where it can."""
    if figure == "macro_auroc":
        problem = (
            "no finding is labelled present in one study of the validation split and absent in another; label some"
        )
        return None if truth.has_both() else problem
    if figure == "pointing_accuracy":
        problem = "no image of the validation split has a box or mask of a finding; ingest the corpus with its regions"
        return None if any(one.marked for one in truth.images.values()) else problem
    cutoff, count = int(figure.rsplit("_", 1)[-1]), config.training.retrieval_studies
    found = len(truth.gallery(count))
    if found > cutoff:
        return None
    if count <= cutoff:
        return f"training.retrieval_studies={count} are not more than {cutoff}; raise it"
    return (
        f"{found} studies of the validation split have report sentences and more than {cutoff} are needed; ingest "
        "reports, see jobs.extract"
    )


def _sentences(truth: ValidationImages, keys: Sequence[Key]) -> list[str]:
    return sorted({text for key in keys for text in truth.images[key].report})


def _auroc(scored: Sequence[ScoredImage], truth: ValidationImages) -> dict[str, float]:
    right: dict[str, list[int]] = {}
    score: dict[str, list[float]] = {}
    for one in scored:
        labels = truth.images[one.key].labels
        for name, value in zip(truth.findings, one.logits, strict=True):
            if labels.get(name, -1) in (0, 1):
                right.setdefault(name, []).append(labels[name])
                score.setdefault(name, []).append(float(value))
    both = [name for name, values in right.items() if len(set(values)) == 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {name: float(roc_auc_score(right[name], score[name])) for name in sorted(both)}
