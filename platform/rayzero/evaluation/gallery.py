"""The pictures of a report: maps over images with the true regions, and what retrieval found."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from contourpy import contour_generator
from PIL import Image as PillowImage

from rayzero.evaluation.metrics import segmentation as dice
from rayzero.evaluation.records import Float32, ImageScores, Localised
from rayzero.evaluation.result import EvaluationResult
from rayzero.evaluation.sections import Retrieval
from rayzero.metrics.retrieval import distinct_ranks
from rayzero.studies.preprocess import Geometry

_HEAT_ALPHA = 0.6
_SHOWN_REPORTS = 3


@dataclass(frozen=True)
class Overlay:
    """One finding on one image, in thumbnail pixels: data URIs, true ``boxes`` (x, y, w, h), outlines as SVG paths.

    ``peak`` is None where the map points to another slice than the one shown.
    """

    finding: str
    study_id: str
    verdict: str
    detail: str
    width: int
    height: int
    image: str
    heat: str
    boxes: list[tuple[float, float, float, float]]
    mask: str
    predicted: str
    peak: tuple[float, float] | None


@dataclass(frozen=True)
class Answer:
    """One retrieved report: its sentences, its similarity, and whether it is the image's own."""

    sentences: tuple[str, ...]
    similarity: float
    own: bool


@dataclass(frozen=True)
class RetrievalExample:
    """An image, its own report, that report's rank among the distinct ones, and those ranked first."""

    study_id: str
    image: str
    sentences: tuple[str, ...]
    rank: int
    answers: list[Answer]


def overlays(result: EvaluationResult, count: int) -> list[Overlay]:
    """Up to ``count`` examples, hits and misses in turn, every finding before any finding twice."""
    pool = [(one, region) for one in result.scored.images for region in one.regions if region.grid is not None]
    hits, misses = (_varied([pair for pair in pool if pair[1].hit is wanted]) for wanted in (True, False))
    # Without misses there are more hits to show, and the other way round.
    kept = max(count // 2, count - len(misses)), max(count // 2, count - len(hits))
    chosen = [*hits[: kept[0]], *misses[: kept[1]]][:count]
    return [_overlay(result, one, region) for one, region in chosen]


def retrieval_examples(result: EvaluationResult, count: int) -> list[RetrievalExample]:
    """Up to ``count`` images: half whose own report ranks best, half whose ranks worst, among those with a picture."""
    part = result.retrieval
    if part is None:
        return []
    pictures = {one.study_id: one.thumbnail for one in result.scored.images if one.thumbnail}
    ranks = distinct_ranks(part.gallery)[0]
    order = sorted((row for row, name in enumerate(part.study_ids) if name in pictures), key=lambda row: ranks[row])
    chosen = order if len(order) <= count else [*order[: count - count // 2], *order[-(count // 2) :]]
    return [_example(part, row, int(ranks[row]), pictures[part.study_ids[row]]) for row in chosen]


def _varied(pairs: Sequence[tuple[ImageScores, Localised]]) -> list[tuple[ImageScores, Localised]]:
    seen: dict[str, int] = {}
    turns: list[tuple[int, str, int]] = []
    for _, region in pairs:
        seen[region.finding] = seen.get(region.finding, 0) + 1
        turns.append((seen[region.finding], region.finding, len(turns)))
    return [pairs[index] for _, _, index in sorted(turns)]


def _overlay(result: EvaluationResult, one: ImageScores, region: Localised) -> Overlay:
    assert region.grid is not None
    section = region.section
    jpeg = one.thumbnail if section is None else region.picture
    picture = PillowImage.open(io.BytesIO(jpeg))
    width, height = picture.size
    down, across = height / one.size[-2], width / one.size[-1]
    laid = Geometry(height, width, "stretch")  # as a slice of a volume's map, at the volume's own voxels already
    if section is None:
        laid = Geometry(height, width, result.geometry, result.crop)
    values = laid.restore(region.grid)
    marked = [
        true
        for true in result.scored.truth.studies[one.study_id].regions
        if true.image_id == one.image_id and region.finding in (true.finding, true.phrase)
    ]
    boxes = [true.box for true in marked if true.box is not None]
    masks = [true.mask.array() for true in marked if true.mask is not None]
    if section is not None:
        masks = [mask[section] for mask in masks]
    threshold = result.segmentation.threshold if result.segmentation else None
    shown = section is None or region.peak[2] == section
    peak = ((region.peak[0] + 0.5) * across, (region.peak[1] + 0.5) * down) if shown else None
    return Overlay(
        finding=region.finding,
        study_id=one.study_id,
        verdict="hit" if region.hit else "miss",
        detail=_detail(result, one, region),
        width=width,
        height=height,
        image=_uri(jpeg),
        heat=_heat(picture, values),
        boxes=[(x0 * across, y0 * down, (x1 - x0) * across, (y1 - y0) * down) for x0, y0, x1, y1 in boxes],
        mask=_outline(np.logical_or.reduce(masks), 0.5, across, down) if masks else "",
        predicted=_outline(values, threshold, 1.0, 1.0) if threshold is not None else "",
        peak=peak,
    )


def _detail(result: EvaluationResult, one: ImageScores, region: Localised) -> str:
    words = [] if region.section is None else [f"slice {region.section} of {one.size[0]}"]
    if result.calibration:
        logit = one.logits[result.scored.findings.index(region.finding)]
        words.append(f"probability {float(result.calibration.calibration.probability(logit)):.2f}")
    if result.segmentation and region.histograms is not None and region.histograms.positive:
        index = int(np.argmin(np.abs(dice.THRESHOLDS - result.segmentation.threshold)))
        words.append(f"Dice {dice.dice_at_thresholds(region.histograms)[index]:.2f}")
    return ", ".join(words)


def _heat(picture: PillowImage.Image, values: Float32) -> str:
    """The map over the picture as a JPEG data URI; colours span the map's own range."""
    unit = (values - values.min()) / max(float(np.ptp(values)), 1e-6)
    colour = mpl.colormaps["inferno"](unit)[..., :3]
    grey = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    # Weak responses stay transparent, so that the anatomy below them can be read.
    alpha = _HEAT_ALPHA * unit[..., None] ** 1.3
    blended = grey * (1 - alpha) + colour * alpha
    file = io.BytesIO()
    PillowImage.fromarray(np.round(blended * 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return _uri(file.getvalue())


def _outline(values: np.ndarray[Any, Any], level: float, across: float, down: float) -> str:
    """Where ``values`` (H, W) cross ``level``, as one SVG path; the border of zero padding closes it at the edges."""
    low = min(float(values.min()), level) - 1.0
    padded = np.pad(values.astype(np.float32), 1, constant_values=low)
    paths = []
    for line in contour_generator(z=padded).lines(level):
        points = " L".join(f"{(x - 0.5) * across:.1f} {(y - 0.5) * down:.1f}" for x, y in np.asarray(line))
        paths.append(f"M{points}")
    return " ".join(paths)


def _example(part: Retrieval, row: int, rank: int, picture: bytes) -> RetrievalExample:
    gallery = part.gallery
    similarity, own = gallery.similarity[row], int(gallery.own[row])
    best = np.argsort(-similarity, kind="stable")[:_SHOWN_REPORTS]
    answers = [Answer(_lines(gallery.reports[int(i)]), float(similarity[i]), int(i) == own) for i in best]
    return RetrievalExample(part.study_ids[row], _uri(picture), _lines(gallery.reports[own]), rank, answers)


def _lines(report: frozenset[str]) -> tuple[str, ...]:
    """Sentences in reading order: what is present before what is absent."""
    return tuple(sorted(report, key=lambda text: (text.lower().startswith("there is no"), text)))


def _uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
