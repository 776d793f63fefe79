"""The feature cache: a frozen encoder without augmentation gives constants, so each image is encoded once.

A cache is a folder of example row groups plus ``cache.json``, which is written last and lists them; its name is
a digest of everything the features depend on (lake, split, encoder, resolution, preprocessing), so runs and
sweep trials that agree on those share it.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch

from rayzero.alignment import registry
from rayzero.config import Config
from rayzero.encoders.vision import build_vision
from rayzero.storage import open_url
from rayzero.studies.examples import stacked, with_features
from rayzero.studies.lake import Lake, RowGroup
from rayzero.studies.loading import Source, lake_source, read_examples
from rayzero.studies.study import Split

_ENCODE_BATCH = 16
# The settings that decide what an encoder gets to see, and which texts are kept beside it.
_PREPARED = {
    "input", "companions", "statuses", "views", "intensity", "geometry", "volume_spacing_mm", "volume_shape", "hu_range"
}  # fmt: skip


def training_source(config: Config, lake: Lake, split: Split) -> Source:
    """What to stream for ``split``: cached features (made now if need be), or the lake itself."""
    # Validation scores silent studies, too: their labels count.
    source = lake_source(lake, split, config.data, config.vision.resolution, with_text=split == "train")
    if not config.vision.cache_features:
        return source
    folder = f"{cache_root(config)}/{cache_key(config, lake, split)}"
    fs, root = open_url(folder)
    if not fs.exists(f"{root}/cache.json"):
        _encode(config, source, folder)
    listing = json.loads(fs.cat_file(f"{root}/cache.json"))
    groups = tuple(RowGroup(**item) for item in listing["row_groups"])
    return Source(groups, split, config.data, config.vision.resolution, prepared=True)


def cache_root(config: Config) -> str:
    """The folder or URL under which caches live."""
    return (config.data.cache or f"{config.storage}/cache").rstrip("/")


def cache_key(config: Config, lake: Lake, split: Split) -> str:
    """A name for the features of ``split``: equal exactly when the features are."""
    data = config.data.model_dump(mode="json", include=_PREPARED)
    pixels = registry.find_system(config).needs_pixels
    vision = config.vision.model_dump(mode="json", include={"encoder", "resolution", "normalised"})
    parts = [lake.fingerprint, split, vision, data, pixels]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _encode(config: Config, source: Source, folder: str) -> None:
    fs, root = open_url(folder)
    fs.makedirs(root, exist_ok=True)
    actors = max(1, int(ray.cluster_resources().get("GPU", 0)) or int(ray.cluster_resources().get("CPU", 1)))
    ids = [{"id": index} for index in range(len(source.row_groups))]
    dataset = ray.data.from_items(ids, override_num_blocks=len(ids)).map_batches(
        _Encoder,
        fn_constructor_args=(config, source, folder),
        batch_size=1,
        # From one actor up: inside a sweep trial most CPUs are taken, and a fixed pool would wait for ever.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors, len(source.row_groups))),
        num_gpus=1 if torch.cuda.is_available() else 0,
    )
    dataset.context.enable_progress_bars = False
    total, done, start = sum(group.num_rows for group in source.row_groups), 0, time.monotonic()
    written: dict[int, RowGroup] = {}
    for row in dataset.iter_rows():
        rows = int(row["num_rows"])
        written[int(row["id"])] = RowGroup(path=str(row["path"]), index=0, num_rows=rows)
        done += rows
        rate = done / (time.monotonic() - start)
        print(f"features {source.split}: {done}/{total} images, {rate:.1f} images/s", flush=True)
    listing = {"row_groups": [asdict(written[index]) for index in sorted(written)]}
    fs.pipe_file(f"{root}/cache.json", json.dumps(listing).encode())


class _Encoder:
    """Encodes row groups; one per actor, so that the encoder is loaded once."""

    def __init__(self, config: Config, source: Source, folder: str) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.encoder = build_vision(config.vision, config.data).to(self.device).eval()
        self.keep_pixels = registry.find_system(config).needs_pixels
        self.config, self.source, self.folder = config, source, folder

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        index = int(batch["id"][0])
        examples = read_examples(self.source, self.source.row_groups[index])
        pixels = torch.from_numpy(stacked(examples))
        if self.config.data.input == "study":
            # Views of a study (B, V, 1, R, R) go through the encoder as radiographs; absent ones stay zero.
            present = torch.tensor(examples.column("present").to_pylist())
            seen = self._encode(pixels[present])
            features = seen.new_zeros(*present.shape, *seen.shape[1:])
            features[present] = seen
        else:
            features = self._encode(pixels)
        path = f"{self.folder}/part-{index:06d}.parquet"
        fs, target = open_url(path)
        with fs.open(target, "wb") as file:
            pq.write_table(
                with_features(examples, features.numpy(), keep_pixels=self.keep_pixels), file, compression="zstd"
            )
        return {"id": np.array([index]), "path": np.array([path]), "num_rows": np.array([examples.num_rows])}

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.encoder(part.to(self.device)).half().cpu() for part in pixels.split(_ENCODE_BATCH)])
