"""Evaluation at published sizes: bootstrap of PadChest, one-pass Dice, memory and time of segmenting SIIM's images.

    python -m tests.benchmarks.evaluation [--out FILE] [--images 1704] [--timed 64] [--only bootstrap dice segmentation]

* bootstrap: 1,000 replicates of the AUROC of 192 classes on 39,053 images, in seconds; the other is scikit-learn on
  resampled rows, timed on one replicate of a few classes and multiplied.
* dice: every threshold of one 1024 x 1024 map at once, against the published 101 passes, in seconds per image.
* segmentation: images of 1024 x 1024 through a protocol's scoring, each in a fresh process. ``--timed`` images through
  a ViT-B/14 of 518 px: seconds per image over those of the encoder's forward pass, clocked inside the same run.
  ``--images`` through a shallow encoder of the same tokens, since what could pile up are maps, masks and records and
  not weights: peak of the resident memory, and its growth after the first tenth.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from rayzero.alignment import registry
from rayzero.alignment.base import ImageFeatures
from rayzero.bundle import Bundle
from rayzero.config import load_config
from rayzero.evaluation.inference import GroupScorer, split_groups
from rayzero.evaluation.metrics.bootstrap import Bootstrap
from rayzero.evaluation.metrics.classification import classify
from rayzero.evaluation.metrics.segmentation import PROBABILITIES, dice_at_probabilities, histograms
from rayzero.evaluation.records import Task
from rayzero.studies.lake import open_lake, write_lake
from rayzero.studies.study import Image, Mask, Region, Study
from tests.benchmarks.harness import Row, paired_seconds, report

SIDE = 1024
SIIM = 1704
_FINDING = "Pneumothorax"


def bootstrap_rows(images: int = 39_053, classes: int = 192, replicates: int = 1000) -> list[Row]:
    """Positives per class fall off as in PadChest: from a third of the images to one."""
    rng = np.random.default_rng(0)
    counts = np.clip(np.exp(rng.normal(4.5, 1.6, classes)), 1, images // 3).astype(int)
    labels = np.zeros((images, classes), np.int8)
    for column, count in enumerate(counts):
        labels[rng.choice(images, count, replace=False), column] = 1
    logits = rng.normal(size=(images, classes)) + labels
    patients = [f"p{index // 2}" for index in range(images)]
    start = time.perf_counter()
    ours = classify(logits, labels, [str(c) for c in range(classes)], patients, Bootstrap(patients, replicates), {})
    seconds = time.perf_counter() - start
    several = [c for c in range(classes) if counts[c] > 20][:8]
    drawn = rng.integers(0, images, images)
    start = time.perf_counter()
    for column in several:
        roc_auc_score(labels[drawn, column], logits[drawn, column])
    other = (time.perf_counter() - start) / len(several) * classes * replicates
    expected = np.mean([roc_auc_score(labels[:, c], logits[:, c]) for c in range(classes)])
    assert abs(ours.macro_auroc.value - expected) < 1e-12
    return [
        Row(f"bootstrap, {replicates} x {classes} classes x {images} images, s", seconds, bar=60.0),
        Row("  over scikit-learn, one replicate measured", seconds, other, bar=0.1),
    ]


def dice_rows() -> list[Row]:
    """One map of a million pixels, smooth as an upsampled one is."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(0, 4, (1, 1, 37, 37)).astype(np.float32))
    values = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")[0, 0].numpy()
    mask = _mask(1).array()

    def passes() -> np.ndarray:
        sigmoid = expit(values.astype(np.float64))
        above = [sigmoid > t for t in PROBABILITIES]
        return np.array([2 * (one & mask).sum() / (one.sum() + mask.sum()) for one in above])

    assert np.array_equal(dice_at_probabilities(histograms(values, mask)), passes())
    ours, other = paired_seconds(lambda: dice_at_probabilities(histograms(values, mask)), passes, rounds=5)
    return [Row("Dice at every threshold of a 1024 x 1024 map, s", ours, other, bar=0.2)]


def segmentation_rows(count: int, timed: int) -> list[Row]:
    """Images of 1024 x 1024, every fourth with a mask, through the scoring of one Ray actor or process."""
    few, many = _measured(timed, layers=12, width=768), _measured(count, layers=1, width=192)
    short = "" if count >= SIIM else f" (SIIM has {SIIM})"
    return [
        Row(f"segmentation of {timed} images, s per image over the forward pass", few.wall, few.forward, bar=1.3),
        Row("  peak resident memory, GB", few.peak / 1e9, bar=2.0),
        Row(f"segmentation of {count} images{short}, peak resident memory, GB", many.peak / 1e9, bar=2.0),
        Row("  growth after the first tenth, GB", many.growth / 1e9, bar=0.2),
        Row("  s per image besides the forward pass", many.wall - many.forward),
    ]


@dataclass(frozen=True)
class Measured:
    """Seconds per image in all and in the encoder; bytes resident at most, and gained after a tenth of the images."""

    wall: float
    forward: float
    peak: float
    growth: float


class Clocked(Bundle):
    """A bundle that adds up the seconds of its encoder."""

    seconds = 0.0

    def encode_images(self, *arguments: Any, **named: Any) -> ImageFeatures:
        """See ``Bundle``."""
        start = time.perf_counter()
        features = super().encode_images(*arguments, **named)
        Clocked.seconds += time.perf_counter() - start
        return features


def _measured(count: int, layers: int, width: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        write_lake(folder, _studies(count))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_segment, folder, layers, width).result()


def _segment(url: str, layers: int, width: int) -> Measured:
    bundle = _bundle(layers, width)
    task = Task(((_FINDING, f"There is {_FINDING}"),), views=("frontal",), segment=frozenset([_FINDING]))
    scorer = GroupScorer(bundle, task, bundle.config.evaluation.batch_size, {})
    process = psutil.Process()
    size = bundle.config.vision.resolution
    bundle.encode_images([np.zeros((1, size, size), dtype=np.float32)])
    Clocked.seconds = 0.0
    records, sizes = [], []
    start = time.perf_counter()
    for group in split_groups(open_lake(url), "test"):
        records += scorer.records(group)
        sizes.append(process.memory_info().rss)
    wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    growth = max(sizes[len(sizes) // 10 :]) - sizes[len(sizes) // 10]
    return Measured(wall / len(records), Clocked.seconds / len(records), peak, growth)


def _bundle(layers: int, width: int) -> Clocked:
    """RadZero on a ViT/14 of 518 px, ViT-B as published with 12 layers of 768; random weights take the same time."""
    from transformers import Dinov2Config, Dinov2Model

    with tempfile.TemporaryDirectory() as folder:
        shape = Dinov2Config(image_size=518, patch_size=14, num_hidden_layers=layers, hidden_size=width)
        Dinov2Model(shape).save_pretrained(folder)
        statistics = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(statistics))
        overrides = [f"vision.encoder={folder}", "vision.resolution=518", "evaluation.batch_size=8", "model.heads=12"]
        config = load_config(None, overrides)
        return Clocked(registry.build_zero_shot(config).eval().requires_grad_(False), config, {})


def _mask(seed: int) -> Mask:
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    y, x = rng.integers(0, SIDE - 300, 2)
    mask[y : y + 300, x : x + 100] = True
    return Mask.from_array(mask)


def _studies(count: int) -> Iterator[Study]:
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE)).astype(np.uint8)
        name = f"i{number:05d}"
        regions = (Region(image_id=name, finding=_FINDING, phrase=_FINDING, mask=_mask(number)),)
        yield Study(
            study_id=name,
            patient_id=name,
            corpus="siim-pneumothorax",
            split="test",
            images=(Image.from_array(name, pixels, view="frontal", bits=8),),
            labels={_FINDING: int(number % 4 == 0)},
            regions=regions if number % 4 == 0 else (),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=SIIM)
    parser.add_argument("--timed", type=int, default=64)
    parser.add_argument("--only", nargs="+", default=("bootstrap", "dice", "segmentation"))
    options = parser.parse_args(arguments)
    rows = []
    if "bootstrap" in options.only:
        rows += bootstrap_rows()
    if "dice" in options.only:
        rows += dice_rows()
    if "segmentation" in options.only:
        rows += segmentation_rows(options.images, options.timed)
    return 0 if report("evaluation", rows, options.out) else 1


if __name__ == "__main__":
    raise SystemExit(main())
