"""The published recipes at full size on one GPU: ``python -m tests.benchmarks.recipes [--recipe NAME] [--out FILE]``.

Random weights and synthetic pixels through the run's own model, engine and step, in bf16: images per second, share of
the GPU's peak and peak memory. ``--count`` needs no GPU: it counts parameters and floating-point operations of one
step, which is what the scaling model of ``platform/rayzero/training/README.md`` stands on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import BertConfig, BertTokenizerFast, Dinov2Config, ViTConfig

from jobs.command import preset_config
from rayzero.alignment import registry
from rayzero.alignment.base import Batch, PretrainingModel
from rayzero.config import Config, override
from rayzero.training import engine as engines
from rayzero.training.plan import count_parts, state_bytes
from rayzero.training.throughput import model_flops, peak_flops
from tests.benchmarks.harness import Row, report
from tests.ports import free_port

_UNTIMED, _TIMED = 3, 10


@dataclass(frozen=True)
class Recipe:
    """A preset at the size of its paper: images per GPU and step, texts per image, words per text, images/s to reach.

    ``vision`` writes the definition of its image encoder to a folder.
    """

    preset: str
    batch: int
    texts_per_image: float
    words: int
    vision: Callable[[Path, bool], None]
    cached: bool = False
    bar: float | None = None


def _dinov2(folder: Path, tiny: bool) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2} if tiny else {}
    Dinov2Config(image_size=42 if tiny else 518, patch_size=14, **sizes).save_pretrained(folder)
    _as_definition(folder)


def _vit(folder: Path, tiny: bool) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2} if tiny else {}
    ViTConfig(image_size=32 if tiny else 224, patch_size=16, **sizes).save_pretrained(folder)
    _as_definition(folder)


def _vit3d(folder: Path, tiny: bool) -> None:
    sizes = {"width": 24, "depth": 2, "heads": 2} if tiny else {"width": 768, "depth": 12, "heads": 12}
    shape = {"patch": [8, 16, 16], "base_grid": [2, 2, 2] if tiny else [14, 14, 14]}
    folder.mkdir(parents=True)
    (folder / "encoder.json").write_text(json.dumps({"architecture": "vit3d", **sizes, **shape}))


def _patches(folder: Path, tiny: bool) -> None:
    sizes = {"image_size": 32 if tiny else 224, "patch": 16, "width": 24 if tiny else 768}
    folder.mkdir(parents=True)
    (folder / "encoder.json").write_text(json.dumps({"architecture": "patch-embedding", **sizes}))


RECIPES = {
    # 6.45 sentences per image (arXiv 2504.07416); bars from the paper's 13 h on four H100, 24.5 images/s each.
    "radzero": Recipe("radzero", 64, 6.45, 16, _dinov2, bar=600.0),
    "radzero-cached": Recipe("radzero", 256, 6.45, 16, _dinov2, cached=True, bar=1200.0),
    "carzero": Recipe("carzero", 256, 1.0, 97, _vit),
    "brgsa": Recipe("brgsa", 16, 1.0, 97, _vit3d),
    "alta": Recipe("alta", 24, 1.0, 128, _patches),
}
_TINY = {
    "radzero": {"vision.resolution": 42, "model.heads": 2},
    "carzero": {"vision.resolution": 32, "model.heads": 2, "model.feedforward": 16, "model.head_widths": [8]},
    "brgsa": {
        "data.volume_shape": [16, 32, 32],
        "model.crop": [16, 32, 32],
        "model.width": 24,
        "model.bank_size": 32,
    },
    "alta": {
        "vision.resolution": 64,
        **{f"model.{name}": 24 for name in ("width", "decoder_width", "projection")},
        **{f"model.{name}": 2 for name in ("depth", "heads", "decoder_depth", "decoder_heads")},
    },
}


def settings(name: str, folder: Path, *, tiny: bool) -> Config:
    """The config of a recipe, its encoders defined in ``folder`` with random weights."""
    recipe = RECIPES[name]
    recipe.vision(folder / "vision", tiny)
    _text(folder / "text", tiny)
    changes = {
        "vision.encoder": str(folder / "vision"),
        "text.encoder": str(folder / "text"),
        "vision.cache_features": recipe.cached,
        **(_TINY[recipe.preset] if tiny else {}),
    }
    return registry.resolve(override(preset_config(recipe.preset, ["training.workers=1"]), changes))


def synthetic(name: str, model: PretrainingModel, config: Config, count: int) -> Batch:
    """``count`` examples of noise as the recipe's data would have them."""
    recipe = RECIPES[name]
    generator = torch.Generator().manual_seed(0)
    texts = max(1, round(recipe.texts_per_image * count))
    words = [
        " ".join(f"w{int(i)}" for i in torch.randint(0, 900, (recipe.words,), generator=generator))
        for _ in range(texts)
    ]
    if recipe.texts_per_image == 1.0:
        positives = torch.eye(count, dtype=torch.bool)
    else:
        positives = torch.zeros(count, texts, dtype=torch.bool)
        positives[torch.arange(texts) * count // texts, torch.arange(texts)] = True
    side = config.vision.resolution
    shapes = {"radiograph": (1, side, side), "study": (4, 1, side, side), "volume": (1, *config.data.volume_shape)}
    pixels = features = present = None
    if recipe.cached:
        tokens = model.vision.num_prefix + model.vision.grid[0] * model.vision.grid[1]
        features = torch.rand(count, tokens, model.vision.width, generator=generator).half()
    else:
        pixels = torch.rand(count, *shapes[config.data.input], generator=generator)
    if config.data.input == "study":
        present = torch.ones(count, 4, dtype=torch.bool)
    return Batch(
        texts=model.text.tokenize(words),
        text_ids=torch.arange(texts),
        positives=positives,
        pixels=pixels,
        features=features,
        present=present,
    )


def throughput(name: str, folder: Path, *, tiny: bool = False) -> list[Row]:
    """Images per second of the recipe on this process's device, of its peak, and its peak memory."""
    recipe, config = RECIPES[name], settings(name, folder, tiny=tiny)
    count = 4 if tiny else recipe.batch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = registry.build(config).to(device)
    batch = synthetic(name, model, config, count).to(device)
    flops = model_flops(model, batch, bf16=True)
    engine = engines.build_engine(model, config)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(_UNTIMED + (1 if tiny else _TIMED)):
        start = time.perf_counter()
        engine.backward(engine(batch)["loss"])
        engine.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[_UNTIMED:])
    rows = [
        Row(f"{name}: images/s at batch {count}", count / seconds, None, recipe.bar, "higher"),
        Row(f"{name}: TFLOP/s", flops / seconds / 1e12),
    ]
    if device.type == "cuda":
        peak = peak_flops(torch.cuda.get_device_name())
        rows.append(Row(f"{name}: peak memory, GiB", torch.cuda.max_memory_allocated() / 2**30))
        rows += [Row(f"{name}: share of the peak", flops / seconds / peak)] if peak else []
    return rows


def counted(name: str, folder: Path, *, tiny: bool = False, images: int = 2) -> list[Row]:
    """Parameters, and floating-point operations of a step per image, of the recipe at full size."""
    config = settings(name, folder, tiny=tiny)
    torch.manual_seed(0)
    model = registry.build(config)
    parts = count_parts(model)
    trained, frozen = sum(part.trained for part in parts), sum(part.frozen for part in parts)
    batch = synthetic(name, model, config, images)
    flops = model_flops(model, batch) / images
    represented = model.represent(batch)
    # Rows of texts, the only ones that travel; a system whose objective compares nothing sends none.
    texts = sum(
        rows[0].numel() * rows.element_size()
        for rows in represented.values()
        if rows.is_floating_point() and rows.shape[0] == batch.text_ids.shape[0] != images
    )
    return [
        Row(f"{name}: trained parameters", trained),
        Row(f"{name}: frozen parameters", frozen),
        Row(f"{name}: GFLOP per image and step", flops / 1e9),
        *([Row(f"{name}: bytes of a text's features", texts)] if texts else []),
        *(
            Row(f"{name}: GiB per GPU for weights and optimizer, {workers} GPUs, stage {stage}", held / 2**30)
            for workers in (8, 64, 512)
            for stage in (1, 3)
            for held in [
                sum(state_bytes(trained, frozen, workers=workers, stage=stage, bf16=True, offload=False).values())
            ]
        ),
    ]


def in_a_process(name: str, folder: Path, *, count: bool) -> list[Row]:
    """The rows of a recipe, from a process of its own: what one leaves on the GPU is not in the next one's way."""
    work: Callable[[str, Path], list[Row]] = counted if count else _measured
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, name, folder).result()


def _measured(name: str, folder: Path) -> list[Row]:
    alone()
    return throughput(name, folder)


def alone() -> None:
    """A process group of this process, as a worker of one finds it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", rank=0, world_size=1)


def _text(folder: Path, tiny: bool) -> None:
    """A BERT of MPNet's size over words of one token each."""
    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(900))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    BertConfig(vocab_size=len(words) if tiny else 30522, **(sizes if tiny else {})).save_pretrained(folder)
    (folder / "encoder.json").write_text(json.dumps({"architecture": "huggingface"}))


def _as_definition(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    (folder / "encoder.json").write_text(json.dumps({"architecture": "huggingface"}))


def main() -> None:
    """Print the table and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(RECIPES), nargs="+", default=list(RECIPES))
    parser.add_argument("--count", action="store_true", help="count instead of measuring; needs no GPU")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not arguments.count and not torch.cuda.is_available():
        parser.error("this machine has no GPU: figures of the recipes mean nothing here; --count needs none")
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        for recipe in arguments.recipe:
            print(f"{recipe} ...", flush=True)
            try:
                rows += in_a_process(recipe, Path(name) / recipe, count=arguments.count)
            except Exception as error:  # one that does not fit the GPU costs the others nothing
                failed.append(recipe)
                print(f"{recipe} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    reached = report("recipes", rows, arguments.out, note="random weights, synthetic pixels, bf16, one worker")
    if failed or not reached:
        raise SystemExit(f"failed: {', '.join(failed)}" if failed else 1)


if __name__ == "__main__":
    main()
