"""Build the vector index that POST /v1/retrieve searches, from the studies of a lake.

python -m jobs.index --bundle runs/demo/bundle --lake runs/demo/lake --out runs/demo/index
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from jobs.command import main, whole_number
from rayzero.alignment.base import ImageFeatures
from rayzero.alignment.encoded import EncodedTexts, encode_texts
from rayzero.bundle import Bundle, fingerprint, load_bundle
from rayzero.config import ConfigError
from rayzero.index import CANDIDATES, Entries, Float, save_index, unit
from rayzero.studies.examples import admitted
from rayzero.studies.lake import Lake, open_lake, read_row_group
from rayzero.studies.priors import PriorFinder, link_priors
from rayzero.studies.study import Image, Study

_COLUMNS = ["study_id", "images", "sentences", "prior_study_id"]
_IMAGE_BATCH = 256
# Searches on which the recall of the proposals is measured, and of how many best entries.
_PROBES, _BEST = 32, 10


def build_index(bundle_url: str, lake_url: str, out: str, *, splits: Sequence[str], batch_size: int) -> dict[str, Any]:
    """Index all images that the model reads and all sentences of ``splits``; what was indexed, with its recall.

    Raises ConfigError when there is nothing to index.
    """
    bundle = load_bundle(bundle_url, "cuda" if torch.cuda.is_available() else "cpu")
    lake = open_lake(lake_url)
    said: dict[str, list[str]] = {}
    images: list[tuple[str, str]] = []
    pooled: list[Float] = []
    tokens: list[np.ndarray[Any, np.dtype[np.float16]]] = []
    grid: tuple[int, ...] = ()
    began = shown = time.monotonic()
    for batch in _batches(_examples(bundle, lake, splits, said), batch_size):
        present = [views for _, _, _, views in batch] if batch[0][3] else None
        features = bundle.encode_images([pixels for _, _, pixels, _ in batch], present)
        images += [(image.image_id, study.study_id) for study, image, _, _ in batch]
        pooled.append(features.pooled.float().cpu().numpy())
        tokens.append(features.tokens.half().cpu().numpy())
        grid = features.grid
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            print(f"index: {len(images)} images, {len(images) / (shown - began):.1f} images/s", flush=True)
    if not images or not said:
        kind = bundle.config.data.input
        raise ConfigError(f"{lake_url} holds no {kind} with sentences in {', '.join(splits)}; give --splits")
    sentences = list(said)
    texts = encode_texts(bundle.encode_prompts, sentences)
    entries = Entries(
        sentences=sentences,
        studies=[said[sentence] for sentence in sentences],
        texts=np.concatenate([text.pooled.float().cpu().numpy() for text in texts.parts]),
        images=images,
        pooled=np.concatenate(pooled),
        tokens=np.concatenate(tokens),
        grid=grid,
    )
    recall = _recall(bundle, entries, texts)
    save_index(out, entries, checksum=fingerprint(bundle_url), recall=recall)
    return {"sentences": len(sentences), "images": len(images), "recall": recall}


def _examples(
    bundle: Bundle, lake: Lake, splits: Sequence[str], said: dict[str, list[str]]
) -> Iterator[tuple[Study, Image, Any, list[bool]]]:
    """Every image that gives an example, prepared; the studies' sentences go into ``said`` on the way."""
    data = bundle.config.data
    groups = lake.row_groups(splits)
    priors = link_priors(lake, groups) if data.input == "study" else {}
    for group in groups:
        studies = list(read_row_group(group, columns=_COLUMNS))
        find = PriorFinder(priors, studies)
        for study in studies:
            for sentence in study.sentences:
                owners = said.setdefault(sentence.text, [])
                if study.study_id not in owners:
                    owners.append(study.study_id)
            for image in admitted(study.images, data):
                if data.input == "study":
                    pixels, present, _ = bundle.prepare_study(study, image, find)
                    yield study, image, pixels, present
                else:
                    yield study, image, bundle.prepare(image)[0], []


def _recall(bundle: Bundle, entries: Entries, sentences: EncodedTexts) -> dict[str, float]:
    """Share of the truly best entries among the proposals, for images and for sentences drawn from the index."""
    images, texts = _spread(len(entries.images)), _spread(len(entries.sentences))
    words = bundle.encode_prompts([entries.sentences[row] for row in texts])
    by_text = np.concatenate(
        [
            bundle.score(_features(bundle, entries, np.array(rows)), words)
            for rows in _batches(iter(range(len(entries.images))), _IMAGE_BATCH)
        ]
    )
    some = _features(bundle, entries, images)
    by_image = sentences.logits(lambda part: bundle.score(some, part), len(images))
    return {
        "images": _held(by_text.T, unit(entries.texts)[texts] @ unit(entries.pooled).T),
        "sentences": _held(by_image, unit(entries.pooled)[images] @ unit(entries.texts).T),
    }


def _features(bundle: Bundle, entries: Entries, rows: np.ndarray[Any, Any]) -> ImageFeatures:
    device = bundle.model.device
    tokens = torch.from_numpy(entries.tokens[rows]).float()
    return ImageFeatures(torch.from_numpy(entries.pooled[rows]).to(device), tokens.to(device), entries.grid)


def _held(true: Float, near: Float) -> float:
    best = np.argsort(-true, axis=1)[:, :_BEST]
    proposed = np.argsort(-near, axis=1)[:, :CANDIDATES]
    return float(np.mean([np.isin(one, other).mean() for one, other in zip(best, proposed, strict=True)]))


def _spread(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.unique(np.linspace(0, count - 1, min(count, _PROBES)).round().astype(np.int64))


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(items, size)):
        yield chunk


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and index."""
    parser = argparse.ArgumentParser(prog="python -m jobs.index", description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", required=True, help="folder or URL of the bundle that will search")
    parser.add_argument("--lake", required=True, help="folder or URL of the lake")
    parser.add_argument("--out", required=True, help="folder or URL to write")
    parser.add_argument("--splits", nargs="+", default=["train"], help="splits to index")
    parser.add_argument("--batch-size", type=whole_number(1), default=32)
    options = parser.parse_args(arguments)
    made = build_index(options.bundle, options.lake, options.out, splits=options.splits, batch_size=options.batch_size)
    print(f"index   {options.out}: {made['sentences']} sentences, {made['images']} images")
    for what, share in made["recall"].items():
        print(f"recall  {share:.3f} of the {_BEST} best {what} are among the {CANDIDATES} that the index proposes")


if __name__ == "__main__":
    main(run)
