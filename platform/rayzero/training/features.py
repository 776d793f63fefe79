"""The feature cache: a frozen encoder without augmentation gives constants, so each image is encoded once.

A cache is a folder of example row groups plus ``cache.json``, which is written last and lists them; its name is
a digest of everything the features depend on (lake, split, encoder, resolution, preprocessing), so runs and
sweep trials that agree on those share it. An encoder in a local folder counts by what its files hold, one of a hub by
its commit, one of a wheel by its name. Each part appears as a whole, so that several may fill one cache at once.

Features are stored as fp16, which takes the room of bf16 (no type of Arrow) and keeps three more bits of each value;
one beyond its range of 65,504 is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch

from rayzero.alignment import registry
from rayzero.config import Config, ConfigError
from rayzero.encoders.vision import LITE0, VisionEncoder, build_vision, hub_commit
from rayzero.encoders.volume import vit3d_size
from rayzero.storage import file_sha256, open_url, write_whole
from rayzero.studies.errors import LakeError
from rayzero.studies.examples import stacked, with_features
from rayzero.studies.lake import Lake, RowGroup
from rayzero.studies.loading import Source, lake_source, read_examples
from rayzero.studies.study import Split

_ENCODE_BATCH = 16
# What an actor hands back to be raised here: through Ray it would be a page of traces, and of a constructor text alone.
_ERRORS: dict[str, type[Exception]] = {"ConfigError": ConfigError, "LakeError": LakeError}
# The settings that decide what an encoder gets to see, and which texts are kept beside it.
_PREPARED = {
    "input", "companions", "statuses", "views", "intensity", "geometry", "crop", "volume_spacing_mm", "volume_shape",
    "hu_range",
}  # fmt: skip


def training_sources(config: Config, lake: Lake, splits: Sequence[Split]) -> dict[Split, Source]:
    """What to stream for each of ``splits``: cached features (made now if need be), or the lake itself."""
    # Validation scores silent studies, too: their labels count.
    sources = {
        split: lake_source(lake, split, config.data, config.vision.resolution, with_text=split == "train")
        for split in splits
    }
    if not config.vision.cache_features:
        return sources
    folders = {split: f"{cache_root(config)}/{cache_key(config, lake, split)}" for split in splits}
    missing = {folder: sources[split] for split, folder in folders.items() if not _listing_exists(folder)}
    if missing:
        _encode(config, missing)
    return {
        split: Source(
            _listed(folder),
            split,
            config.data,
            config.vision.resolution,
            prepared=True,
            studies=sources[split].row_groups,
        )
        for split, folder in folders.items()
    }


def _listing_exists(folder: str) -> bool:
    fs, root = open_url(folder)
    return bool(fs.exists(f"{root}/cache.json"))


def _listed(folder: str) -> tuple[RowGroup, ...]:
    fs, root = open_url(folder)
    listing = json.loads(fs.cat_file(f"{root}/cache.json"))
    return tuple(RowGroup(**item) for item in listing["row_groups"])


def cache_root(config: Config) -> str:
    """The folder or URL under which caches live."""
    return (config.data.cache or f"{config.storage}/cache").rstrip("/")


def cache_key(config: Config, lake: Lake, split: Split) -> str:
    """A name for the features of ``split``: equal exactly when the features are."""
    data = config.data.model_dump(mode="json", include=_PREPARED)
    pixels = registry.find_system(config).needs_pixels
    vision = config.vision.model_dump(mode="json", include={"encoder", "resolution", "normalised"})
    vision["encoder"] = _identity(config.vision.encoder)
    # Which texts are aligned decides which training studies have any.
    reports = split == "train" and config.data.texts == "report"
    parts = [lake.fingerprint, split, vision, data, pixels, reports]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _identity(encoder: str) -> str:
    """What changes with the weights of ``encoder``. Raises ConfigError for one that cannot be had."""
    if Path(encoder).is_dir():
        return _contents(Path(encoder))
    shipped = encoder == LITE0 or vit3d_size(encoder) is not None
    return encoder if shipped else f"{encoder}@{_commit(encoder)}"


@cache
def _commit(source: str) -> str:
    """Asked of the hub once: a sweep asks for every point, and all of it is to have one encoder."""
    return hub_commit(source)


def _contents(folder: Path) -> str:
    """A digest of the files in ``folder``: an encoder trained further keeps its place and not its features."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [(path, path.stat()) for path in paths]
    return _digest(folder, tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in found))


@cache
def _digest(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of ``files`` (path, size, time of writing): a sweep asks for every point, and weights are gigabytes."""
    lines = [f"{path.relative_to(folder)} {file_sha256(path)}\n" for path, *_ in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _encode(config: Config, sources: Mapping[str, Source]) -> None:
    """Fill the cache folders of ``sources`` with one set of encoders: a small split takes less than loading one."""
    for folder in sources:
        fs, root = open_url(folder)
        fs.makedirs(root, exist_ok=True)
    work = [(folder, index) for folder, source in sources.items() for index in range(len(source.row_groups))]
    # Where training runs: the GPUs of a cluster may be somebody else's.
    gpus = config.training.gpus_per_worker
    actors = int(ray.cluster_resources().get("GPU", 0) / gpus if gpus else ray.cluster_resources().get("CPU", 1))
    items = [{"folder": folder, "id": index} for folder, index in work]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Encoder,
        fn_constructor_args=(config, dict(sources), "cuda" if gpus else "cpu"),
        batch_size=1,
        # From one actor up: inside a sweep trial most CPUs are taken, and a fixed pool would wait for ever.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(actors, len(items)))),
        num_gpus=gpus,
    )
    dataset.context.enable_progress_bars = False
    total = sum(source.num_rows for source in sources.values())
    done, start = 0, time.monotonic()
    written: dict[tuple[str, int], RowGroup] = {}
    for row in dataset.iter_rows():
        if row["error"]:
            raise _ERRORS[str(row["error"])](str(row["reason"]))
        rows = int(row["num_rows"])
        written[str(row["folder"]), int(row["id"])] = RowGroup(path=str(row["path"]), index=0, num_rows=rows)
        done += rows
        rate = done / (time.monotonic() - start)
        print(f"features: {done}/{total} images, {rate:.1f} images/s", flush=True)
    for folder in sources:
        listing = {"row_groups": [asdict(written[item]) for item in work if item[0] == folder]}
        fs, root = open_url(folder)
        write_whole(fs, f"{root}/cache.json", json.dumps(listing).encode())


def _rows(path: str) -> int | None:
    """How many examples the part at ``path`` holds; None where there is none."""
    fs, target = open_url(path)
    if not fs.exists(target):
        return None
    with fs.open(target, "rb") as file:
        return int(pq.read_metadata(file).num_rows)


class _Encoder:
    """Encodes row groups; one per actor, so that the encoder is loaded once.

    The row that it gives for one has ``error``, a name of ``_ERRORS`` or "", and its ``reason``.
    """

    def __init__(self, config: Config, sources: Mapping[str, Source], device: str) -> None:
        self.device = device
        self.keep_pixels = registry.find_system(config).needs_pixels
        self.config, self.sources = config, sources

    @cached_property
    def encoder(self) -> VisionEncoder:
        """Built when first needed and not by the constructor, an error of which ends the actor."""
        with torch.inference_mode(mode=False):  # as anywhere else, whatever the caller does with it
            return build_vision(self.config.vision, self.config.data).to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        folder, index = str(batch["folder"][0]), int(batch["id"][0])
        path, rows, error, reason = "", 0, "", ""
        try:
            path, rows = self._part(folder, index)
        except tuple(_ERRORS.values()) as refusal:
            error, reason = type(refusal).__name__, str(refusal)
        return {
            "folder": np.array([folder]),
            "id": np.array([index]),
            "path": np.array([path]),
            "num_rows": np.array([rows]),
            "error": np.array([error]),
            "reason": np.array([reason]),
        }

    def _part(self, folder: str, index: int) -> tuple[str, int]:
        """Where the features of a row group are, and of how many examples."""
        group = self.sources[folder].row_groups[index]
        # Not by its place: equal studies may lie in other row groups after another ingest, or in a copy of the lake.
        name = hashlib.sha256(f"{group.path} {group.index}".encode()).hexdigest()[:16]
        path = f"{folder}/part-{name}.parquet"
        # By another run that fills the same cache, or one that was stopped.
        rows = _rows(path)
        if rows is None:
            rows = self._write(path, self.sources[folder], index)
        return path, rows

    def _write(self, path: str, source: Source, index: int) -> int:
        examples = read_examples(source, source.row_groups[index])
        pixels = torch.from_numpy(stacked(examples))
        if self.config.data.input == "study":
            # Views of a study (B, V, 1, R, R) go through the encoder as radiographs; absent ones stay zero.
            present = torch.tensor(examples.column("present").to_pylist())
            seen = self._encode(pixels[present])
            features = seen.new_zeros(*present.shape, *seen.shape[1:])
            features[present] = seen
        else:
            features = self._encode(pixels)
        content = io.BytesIO()
        table = with_features(examples, features.numpy(), keep_pixels=self.keep_pixels)
        pq.write_table(table, content, compression="zstd")
        fs, target = open_url(path)
        write_whole(fs, target, content.getvalue())
        return int(examples.num_rows)

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        features = torch.cat([self.encoder(part.to(self.device)).half().cpu() for part in pixels.split(_ENCODE_BATCH)])
        if not features.isfinite().all():
            raise ConfigError(
                f"vision.encoder={self.config.vision.encoder} gives features that are no numbers, or beyond the 65,504 "
                "of cached ones: set vision.cache_features=false, or see that its weights are sound"
            )
        return features
