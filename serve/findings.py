"""A model's answer as the findings that a client gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
from scipy.special import expit

from rayzero.bundle import AnyGeometry
from serve import maps
from serve.engine import Answer
from serve.prompts import Prompt
from serve.schemas import Finding, MapData, MapFormat, Peak, RunLengths

Float = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Drawing:
    """How findings are located and drawn.

    ``threshold`` is on sigmoid(map), ``slice`` that of a volume or None for each finding's own peak, ``side`` the
    longest side of a picture.
    """

    forms: frozenset[MapFormat]
    threshold: float
    slice: int | None
    side: int


def to_findings(
    prompts: Sequence[Prompt],
    answer: Answer,
    geometry: AnyGeometry,
    drawing: Drawing,
    top: int | None,
    gone: Event,
) -> list[Finding]:
    """One finding for each prompt in the order asked, or the ``top`` likeliest by rank.

    Ends early where ``gone`` tells that nobody waits any more: hundreds of masks of a volume take minutes.
    """
    ranks = np.empty(len(prompts), dtype=int)
    ranks[answer.order] = np.arange(1, len(prompts) + 1)
    rows = range(len(prompts)) if top is None else [int(row) for row in answer.order[:top]]
    grids = {} if answer.maps is None else dict(zip(answer.mapped.tolist(), answer.maps, strict=True))
    return [
        Finding(
            prompt=prompts[row].finding,
            sentence=prompts[row].sentence,
            logit=float(answer.logits[row]),
            probability=float(answer.probabilities[row]),
            probability_interval=None if answer.intervals is None else tuple(answer.intervals[row].tolist()),
            rank=int(ranks[row]),
            **(_located(grids[row], geometry, drawing) if row in grids else {}),
        )
        for row in rows
        if not gone.is_set()
    ]


def _located(grid: Float, geometry: AnyGeometry, drawing: Drawing) -> dict[str, Any]:
    level, forms, side = maps.logit(drawing.threshold), drawing.forms, drawing.side
    found = maps.locate(grid, geometry, level)
    x, y, z = found.peak
    shown = None if z is None else z if drawing.slice is None else drawing.slice
    mask = maps.runs(maps.mask(grid, geometry, level)) if MapFormat.mask in forms else None
    data = MapData(
        shape=grid.shape,
        extent=maps.extent(geometry),
        depth=maps.depth(geometry),
        values=maps.encode_array(grid) if MapFormat.array in forms else None,
        slice=shown if forms & {MapFormat.png, MapFormat.contour} else None,
        png=maps.encode_png(grid, geometry, side, shown) if MapFormat.png in forms else None,
        contours=maps.contours(grid, geometry, level, side, shown) if MapFormat.contour in forms else None,
        mask=None if mask is None else RunLengths(size=mask.size, counts=mask.counts),
    )
    peaks = None if found.slice_peaks is None else np.round(expit(found.slice_peaks), 4).tolist()
    return {
        "peak": Peak(x=x, y=y, z=z),
        "box": found.box,
        "slices": found.slices,
        "area_fraction": found.area_fraction,
        "slice_peaks": peaks,
        "map": data,
    }
