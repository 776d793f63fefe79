"""What a model sees while it trains: similarity maps of a few validation images, as one picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rayzero.alignment.base import AlignmentModel
from rayzero.config import Config
from rayzero.studies.examples import stacked, stacked_pixels
from rayzero.studies.loading import Source, read_examples

_IMAGES, _SIDE = 4, 160


@torch.no_grad()
def sample_maps(model: AlignmentModel, source: Source, config: Config) -> dict[str, Tensor]:
    """Pictures (3, H, W) in [0, 1] by finding: a row per image that has it, the image beside its map.

    The images are the first of the validation split that a finding is known to be present in, the same at each
    validation. Maps are scaled to their own range. Where features are cached without pixels the map stands alone; a
    volume is shown by its brightest and most similar slice.
    """
    was_training = model.training
    model.eval()
    examples = read_examples(source, source.row_groups[0])
    labels = [dict(row) for row in examples.column("labels").to_pylist()]
    pictures: dict[str, Tensor] = {}
    for finding in sorted({name for row in labels for name in row}):
        rows = [index for index, row in enumerate(labels) if row.get(finding) == 1][:_IMAGES]
        if not rows:
            continue
        chosen = examples.take(rows)
        images = torch.from_numpy(stacked(chosen)).to(model.device)
        seen = torch.tensor(chosen.column("present").to_pylist(), dtype=torch.bool, device=model.device)
        given = {"features": images} if source.prepared else {"pixels": images}
        prompt = model.encode_prompts([config.evaluation.prompt.replace("{}", finding)])
        features = model.encode_image(**given, present=seen if seen.shape[1] else None)
        maps = model.similarity_map(features, prompt)[:, 0].float().cpu()
        kept = stacked_pixels(chosen) if source.prepared else images.float().cpu().numpy()
        pictures[finding] = _picture(maps, None if kept is None else torch.from_numpy(np.asarray(kept)).float())
    model.train(was_training)
    return pictures


def _picture(maps: Tensor, pixels: Tensor | None) -> Tensor:
    """Rows of image and map (3, H, W); ``maps`` (B, h, w[, d first]), ``pixels`` (B, ..., H, W) or None."""
    rows = []
    for index, one in enumerate(maps):
        heat = _warm(_square(_unit(one)))
        parts = [heat]
        if pixels is not None:
            image = _square(_unit(_first_view(pixels[index])))
            grey = image.expand(3, -1, -1)
            parts = [grey, 0.55 * grey + 0.45 * heat]
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows, dim=1).clamp(0, 1)


def _first_view(pixels: Tensor) -> Tensor:
    """One plane or volume: the current frontal film of a study, without the channel."""
    while pixels.ndim > 3 or (pixels.ndim == 3 and pixels.shape[0] == 1):
        pixels = pixels[0]
    return pixels


def _square(values: Tensor) -> Tensor:
    """A picture (1, S, S); of a volume the largest value along its first axis."""
    flat = values.amax(dim=0) if values.ndim == 3 else values
    return torch.nn.functional.interpolate(flat[None, None], size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)[
        0
    ]


def _unit(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=1e-6)


def _warm(values: Tensor) -> Tensor:
    """(1, H, W) in [0, 1] as dark blue over red to yellow (3, H, W)."""
    value = values[0]
    return torch.stack([(1.6 * value).clamp(max=1), (2 * value - 0.9).clamp(min=0), 0.45 * (1 - value) ** 2])
