"""One pass of a model over a split: every image is encoded once, every prompt and sentence once.

The same function scores a row group in this process (``InProcess``) and on the actors of a Ray Data pipeline
(``OnRay``), in the same batches, so that both give the same figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import torch

from rayzero.alignment.base import ImageFeatures
from rayzero.alignment.encoded import EncodedTexts, encode_texts
from rayzero.bundle import AnyGeometry, Bundle, load_bundle
from rayzero.config import Config
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.kept import Kept
from rayzero.evaluation.metrics.segmentation import histograms
from rayzero.evaluation.metrics.semantic import Assigned, assign
from rayzero.evaluation.pictures import radiograph_picture, section_picture
from rayzero.evaluation.records import SCHEMA, Float32, ImageScores, Localised, Task, from_table, to_table
from rayzero.metrics.grounding import box_share, boxes_mask, contrast, first_peak, pointing_hit
from rayzero.studies.errors import LakeError
from rayzero.studies.lake import Lake, RowGroup, read_row_group
from rayzero.studies.priors import PriorFinder, PriorGroups, link_priors
from rayzero.studies.study import Image, Region, Study

_COLUMNS = ("images", "regions", "prior_study_id")


_T = TypeVar("_T")


class Scorer(Protocol):
    """Scores every image of a task's view in one split, ordered by study and image."""

    def __call__(self, lake: Lake, split: str, task: Task) -> list[ImageScores]:
        """Raises EvaluationError when the split is absent or holds no image of the view."""


@dataclass(frozen=True)
class InProcess:
    """Scores here, without Ray: for tests and small sets. ``kept`` holds what was scored before an interruption."""

    bundle: Bundle
    batch_size: int
    kept: Kept | None = None

    def __call__(self, lake: Lake, split: str, task: Task) -> list[ImageScores]:
        """See ``Scorer``."""
        groups = split_groups(lake, split)
        worker = GroupScorer(self.bundle, task, self.batch_size, _priors(self.bundle.config, lake, groups), self.kept)
        return _ordered((one for group in groups for one in worker.records(group)), lake, split, task)


@dataclass(frozen=True)
class OnRay:
    """Scores on ``workers`` Ray Data actors, each with the bundle loaded once; Ray is initialised by the caller.

    ``config`` is the bundle's, with other ``data.companions`` perhaps. ``bundle_url`` and the lake must be readable
    from every node. A fraction of a CPU per actor keeps a small machine from waiting for a slot that is never free.
    """

    bundle_url: str
    config: Config
    batch_size: int
    workers: int
    cpus_per_worker: float = 0.5
    gpus_per_worker: float = 0.0
    kept: Kept | None = None

    def __call__(self, lake: Lake, split: str, task: Task) -> list[ImageScores]:
        """See ``Scorer``."""
        import ray.data

        groups = split_groups(lake, split)
        done: list[ImageScores] = []
        pending: list[RowGroup] = []
        for group in groups:
            before = self.kept.read(group, task, self.config) if self.kept else None
            if before is None:
                pending.append(group)
            else:
                done += before
        if not pending:
            return _ordered(done, lake, split, task)
        items = [{"path": group.path, "index": group.index, "num_rows": group.num_rows} for group in pending]
        priors = _priors(self.config, lake, groups)
        # One block per row group: the unit that actors take up as they become free.
        data = ray.data.from_items(items, override_num_blocks=len(items))
        data.context.enable_progress_bars = False
        scored = data.map_batches(
            _Actor,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(items))),
            num_cpus=self.cpus_per_worker,
            num_gpus=self.gpus_per_worker or None,
            fn_constructor_args=(self.bundle_url, self.config, task, self.batch_size, priors, self.kept),
        )
        tables = scored.iter_batches(batch_size=None, batch_format="pyarrow")
        return _ordered(chain(done, (one for table in tables for one in from_table(table))), lake, split, task)


class GroupScorer:
    """A bundle with the texts of a task encoded, ready to score row groups."""

    def __init__(
        self, bundle: Bundle, task: Task, batch_size: int, priors: PriorGroups, kept: Kept | None = None
    ) -> None:
        self.bundle, self.task, self.batch_size, self.priors, self.kept = bundle, task, batch_size, priors, kept
        self._phrased = bundle.phrase([prompt for _, prompt in task.prompts])
        # A finding's map is that of its first phrasing.
        self._column: dict[str, int] = {}
        for (finding, _), start in zip(task.prompts, self._phrased.starts, strict=True):
            self._column.setdefault(finding, int(start))
        self._prompts = encode_texts(bundle.encode_prompts, self._phrased.sentences)
        self._phrase = {phrase: place for place, phrase in enumerate(task.phrases)}
        self._phrases = encode_texts(bundle.encode_prompts, task.phrases)
        self._sentences = encode_texts(bundle.encode_prompts, task.sentences)

    def records(self, group: RowGroup) -> list[ImageScores]:
        """``score``, or what is kept of it from before an interruption."""
        if self.kept is None:
            return list(self.score(group))
        found = self.kept.read(group, self.task, self.bundle.config)
        if found is None:
            found = list(self.score(group))
            self.kept.write(group, self.task, self.bundle.config, found)
        return found

    def score(self, group: RowGroup) -> Iterator[ImageScores]:
        """The images of the task's view in one row group."""
        studies = list(read_row_group(group, columns=_COLUMNS))
        find = PriorFinder(self.priors, studies)
        views = ((study, image) for study in studies for image in study.images if image.view in self.task.views)
        for batch in _chunks(views, self.batch_size):
            yield from self._score_batch(batch, find)

    def _score_batch(self, batch: Sequence[tuple[Study, Image]], find: PriorFinder) -> Iterator[ImageScores]:
        prepared = [self._prepare(study, image, find) for study, image in batch]
        present = [views for _, views, _ in prepared] if prepared[0][1] else None
        features = self.bundle.encode_images([pixels for pixels, _, _ in prepared], present)
        logits = self._logits(features, self._prompts)
        logits = self._phrased.mean(logits) if self.task.prompts else logits
        sentences = self._logits(features, self._sentences)
        empty = np.zeros((len(batch), 0), dtype=np.float32)
        embeddings = features.pooled.float().cpu().numpy() if self.task.embed else empty
        for row, ((study, image), (_, _, geometry)) in enumerate(zip(batch, prepared, strict=True)):
            if not (np.isfinite(logits[row]).all() and np.isfinite(sentences[row]).all()):
                raise EvaluationError(f"the model gave a logit that is not finite for image {image.image_id}")
            example = study.study_id in self.task.examples
            alone = features.rows(slice(row, row + 1))
            yield ImageScores(
                study_id=study.study_id,
                patient_id=study.patient_id,
                image_id=image.image_id,
                size=image.shape,
                logits=logits[row],
                sentences=sentences[row],
                regions=tuple(self._localise(alone, study, image, geometry, example)),
                thumbnail=self._picture(image) if example else b"",
                view=image.view,
                embedding=embeddings[row],
                assigned=self._assign(alone, study, image, geometry) if self.task.among else None,
            )

    def _picture(self, image: Image) -> bytes:
        if len(image.shape) == 3:
            return section_picture(image.array(), image.shape[0] // 2)
        return radiograph_picture(image, self.bundle.config.data.intensity)

    def _prepare(self, study: Study, image: Image, find: PriorFinder) -> tuple[Float32, list[bool], AnyGeometry]:
        if self.bundle.config.data.input == "study":
            return self.bundle.prepare_study(study, image, find)
        pixels, geometry = self.bundle.prepare(image)
        return pixels, [], geometry

    def _logits(self, features: ImageFeatures, texts: EncodedTexts) -> Float32:
        return texts.logits(lambda part: self.bundle.score(features, part), len(features.pooled))

    def _localise(
        self, features: ImageFeatures, study: Study, image: Image, geometry: AnyGeometry, example: bool
    ) -> Iterator[Localised]:
        """The findings and phrases that have a region on ``image``, and what every image is segmented for."""
        findings: dict[str, list[Region]] = {name: [] for name in sorted(self.task.segment)}
        phrases: dict[str, list[Region]] = {}
        for region in study.regions:
            if region.image_id != image.image_id:
                continue
            if region.finding in self._column:
                findings.setdefault(region.finding, []).append(region)
            if region.phrase in self._phrase:
                phrases.setdefault(region.phrase, []).append(region)
        for finding, marked in findings.items():
            grid = self._map(features, self._prompts, self._column[finding])
            filled = finding in self.task.segment
            yield _compare(finding, grid, marked, geometry, image, keep=example, filled=filled)
        for phrase, marked in phrases.items():
            grid = self._map(features, self._phrases, self._phrase[phrase])
            yield _compare(phrase, grid, marked, geometry, image, keep=example, filled=True, contrasted=True)

    def _assign(self, features: ImageFeatures, study: Study, image: Image, geometry: AnyGeometry) -> Assigned:
        """Every pixel given to one of the findings ``among``; their maps exist one at a time."""
        found: dict[int, list[np.ndarray[Any, np.dtype[np.bool_]]]] = {}
        for region in study.regions:
            if region.image_id == image.image_id and region.mask is not None and region.finding in self.task.among:
                found.setdefault(self.task.among.index(region.finding), []).append(region.mask.array())
        grids = (self._map(features, self._prompts, self._column[name]) for name in self.task.among)
        maps = (geometry.restore(np.ascontiguousarray(grid, dtype=np.float32)) for grid in grids)
        return assign(maps, {place: np.logical_or.reduce(masks) for place, masks in found.items()}, image.shape)

    def _map(self, features: ImageFeatures, texts: EncodedTexts, place: int) -> Float32:
        grid: Float32 = self.bundle.similarity_map(features, texts.one(place))[0, 0]
        return grid


class _Actor:
    """A Ray Data actor: loads the bundle once, then scores one row group per call."""

    def __init__(
        self, bundle_url: str, config: Config, task: Task, batch_size: int, priors: PriorGroups, kept: Kept | None
    ) -> None:
        bundle = load_bundle(bundle_url, "cuda" if torch.cuda.is_available() else "cpu")
        self._scorer = GroupScorer(replace(bundle, config=config), task, batch_size, priors, kept)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        groups = zip(batch["path"], batch["index"], batch["num_rows"], strict=True)
        records = [one for p, i, n in groups for one in self._scorer.records(RowGroup(str(p), int(i), int(n)))]
        return to_table(records) if records else SCHEMA.empty_table()


def _priors(config: Config, lake: Lake, groups: list[RowGroup]) -> PriorGroups:
    return link_priors(lake, groups) if config.data.input == "study" else {}


def split_groups(lake: Lake, split: str) -> list[RowGroup]:
    """The row groups of ``split``. Raises EvaluationError naming the lake, the split and the remedy."""
    try:
        return lake.row_groups([split])
    except LakeError as error:
        raise EvaluationError(f"{error}; ingest studies of split {split!r}, or evaluate another split") from None


def _compare(
    finding: str,
    grid: Float32,
    marked: Sequence[Region],
    geometry: AnyGeometry,
    image: Image,
    *,
    keep: bool,
    filled: bool = False,
    contrasted: bool = False,
) -> Localised:
    """A map's peak at the image's own size against the boxes, and its values against the union of the masks.

    ``filled``: boxes stand for masks where there are none, and an image without either has an empty mask.
    """
    values = geometry.restore(np.ascontiguousarray(grid, dtype=np.float32))
    boxes = [region.box for region in marked if region.box is not None]
    masks = [region.mask.array() for region in marked if region.mask is not None]
    if any(mask.shape != values.shape for mask in masks):
        raise EvaluationError(
            f"image {image.image_id}: a mask of {finding!r} is {masks[0].shape}, the image {values.shape}; "
            "ingest it again"
        )
    union = np.logical_or.reduce(masks) if masks else None
    if union is None and filled and values.ndim == 2:
        union = boxes_mask(boxes, *values.shape, truncate=not contrasted)
    peak = first_peak(values)
    hit, chance = pointing_hit(peak, boxes, union if masks else None), None
    if boxes:
        chance = box_share(boxes, *values.shape)
    elif masks and union is not None:
        chance = float(union.mean())
    found = Localised(
        finding=finding,
        peak=peak,
        hit=hit,
        chance=chance,
        histograms=histograms(values, union) if union is not None and (filled or union.any()) else None,
        contrast=contrast(values, union) if contrasted and union is not None else None,
    )
    if not keep:
        return found
    if values.ndim == 2:
        return replace(found, grid=grid)
    # The slice where the finding is largest, or where the map points.
    section = peak[2] if union is None else int(union.sum(axis=(1, 2)).argmax())
    return replace(found, grid=values[section].copy(), section=section, picture=section_picture(image.array(), section))


def _ordered(records: Iterable[ImageScores], lake: Lake, split: str, task: Task) -> list[ImageScores]:
    found = sorted(records, key=lambda one: (one.study_id, one.image_id))
    if not found:
        raise EvaluationError(
            f"split {split!r} of the lake at {lake.url} has no {' or '.join(task.views)} image; check the views that "
            "ingest read"
        )
    return found


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
