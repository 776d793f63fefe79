"""Channel statistics of a frozen encoder over the films of a lake, as JSON on standard output.

python -m rayzero.training.channel_statistics data/lake > platform/rayzero/encoders/lite0_channels.json

is how the file beside the embedded encoder was made, from the simulated films of ``make demo``.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

import torch

from rayzero.config import DataConfig, VisionConfig
from rayzero.encoders.vision import VisionEncoder, build_vision
from rayzero.studies.lake import Lake, open_lake
from rayzero.studies.preprocess import prepare

_FILMS = 200


@torch.inference_mode()
def measure(encoder: VisionEncoder, lake: Lake, films: int, resolution: int) -> dict[str, Any]:
    """Mean and standard deviation of each channel over all tokens of the first training ``films``, frontal and lateral.

    Four significant digits: no model is that sensitive to them.
    """
    data = DataConfig()
    images = (image for study in lake.read(splits=["train"]) for image in study.images)
    chosen = itertools.islice((i for i in images if i.view in ("frontal", "lateral")), films)
    total, squares, count = torch.zeros(encoder.width).double(), torch.zeros(encoder.width).double(), 0
    for image in chosen:
        tokens = encoder(torch.tensor(prepare(image, data, resolution)[0]).unsqueeze(0))[0].double()
        total, squares, count = total + tokens.sum(dim=0), squares + tokens.square().sum(dim=0), count + len(tokens)
    mean = total / count
    std = (squares / count - mean.square()).sqrt()
    return {name: [float(f"{value:.4g}") for value in row.tolist()] for name, row in (("mean", mean), ("std", std))}


def main(url: str) -> None:
    """Print the statistics of the embedded encoder over the lake at ``url``."""
    config = VisionConfig()
    print(json.dumps(measure(build_vision(config).eval(), open_lake(url), _FILMS, config.resolution)))


if __name__ == "__main__":
    main(sys.argv[1])
