"""A vector index over a lake: which sentences fit an image, and which images fit a text, among very many.

Systems score an image and a text in ways of their own (cross-attention, similarity attention), which no vector index
computes. So faiss proposes: the entries whose global vector lies nearest. Then the system itself scores those, and its
scores order the answer. ``recall`` in ``index.json`` says what share of the true ten best the proposals held when
the index was built.

A folder: ``index.json`` (model, counts, recall, SHA-256 of each file), ``sentences.parquet`` and ``images.parquet``
(what the rows are), ``*.faiss``, and the images' features as ``pooled.npy`` and ``tokens.npy`` (float16).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayzero.alignment.base import ImageFeatures
from rayzero.storage import file_sha256, local_copy, open_url

FORMAT_VERSION = 1
CANDIDATES = 100
"""Entries that are proposed for each search at the least."""

Float = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

# Up to so many vectors are compared one by one, which finds all; above, a graph is searched.
_EXACT = 50_000
_LINKS = 32
_FILES = ("sentences.parquet", "images.parquet", "sentences.faiss", "images.faiss", "pooled.npy", "tokens.npy")


class SearchIndexError(RuntimeError):
    """An index is missing, damaged, or of another format or model; the message names it and the remedy."""


@dataclass(frozen=True)
class Entries:
    """What an index is built of, row by row.

    ``sentences`` with the ``studies`` that say them and their vectors ``texts`` (S, D); ``images`` (image id, study
    id) with ``pooled`` (M, D) and ``tokens`` (M, N, D) on the patch ``grid``.
    """

    sentences: Sequence[str]
    studies: Sequence[Sequence[str]]
    texts: Float
    images: Sequence[tuple[str, str]]
    pooled: Float
    tokens: np.ndarray[Any, np.dtype[np.float16]]
    grid: tuple[int, ...]


@dataclass(frozen=True)
class VectorIndex:
    """A loaded index. ``card`` is its index.json."""

    card: dict[str, Any]
    sentences: list[str]
    studies: list[list[str]]
    images: list[tuple[str, str]]
    _by_sentence: Any
    _by_image: Any
    _pooled: np.ndarray[Any, Any]
    _tokens: np.ndarray[Any, Any]

    def propose_sentences(self, image: ImageFeatures, count: int) -> Rows:
        """Rows of sentences near one image, the nearest first; ``count`` or as many as there are."""
        return _nearest(self._by_sentence, image.pooled.float().cpu().numpy(), count)

    def propose_images(self, text: torch.Tensor, count: int) -> Rows:
        """Rows of images near the global vector (1, D) of a text."""
        return _nearest(self._by_image, text.float().cpu().numpy(), count)

    def features(self, rows: Rows) -> ImageFeatures:
        """Features of the images in ``rows``, as a model scores them."""
        return ImageFeatures(
            torch.from_numpy(np.asarray(self._pooled[rows], dtype=np.float32)),
            torch.from_numpy(np.asarray(self._tokens[rows], dtype=np.float32)),
            tuple(self.card["grid"]),
        )


def save_index(url: str, entries: Entries, *, checksum: str, recall: dict[str, float]) -> None:
    """Write an index to ``url`` (a folder, local or on any fsspec file system) for the bundle of that ``checksum``.

    Raises SearchIndexError for a folder that holds something else.
    """
    fs, root = open_url(url)
    if fs.exists(root) and fs.find(root) and not fs.exists(f"{root}/index.json"):
        raise SearchIndexError(f"{url} holds files and is no index; give another folder")
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        columns = {"sentence": list(entries.sentences), "study_ids": [list(ids) for ids in entries.studies]}
        pq.write_table(pa.table(columns), local / "sentences.parquet")
        ids = {name: [image[place] for image in entries.images] for place, name in enumerate(("image_id", "study_id"))}
        pq.write_table(pa.table(ids), local / "images.parquet")
        faiss.write_index(_build(entries.texts), str(local / "sentences.faiss"))
        faiss.write_index(_build(entries.pooled), str(local / "images.faiss"))
        np.save(local / "pooled.npy", entries.pooled)
        np.save(local / "tokens.npy", entries.tokens)
        card = {
            "format": FORMAT_VERSION,
            "checksum": checksum,
            "grid": list(entries.grid),
            "sentences": len(entries.sentences),
            "images": len(entries.images),
            "recall": recall,
            "files": {name: file_sha256(local / name) for name in _FILES},
        }
        (local / "index.json").write_text(json.dumps(card, indent=2))
        fs.makedirs(root, exist_ok=True)
        fs.put(f"{folder}/", f"{root}/", recursive=True)


def load_index(url: str, checksum: str) -> VectorIndex:
    """The index at ``url`` for the bundle of that ``checksum``.

    Image features stay on the disk, mapped. Raises SearchIndexError when a file is absent or altered, or when the
    index was built with another bundle.
    """
    fs, root = open_url(url)
    if not fs.exists(f"{root}/index.json"):
        raise SearchIndexError(f"{url}: no index here (index.json is absent); build one with jobs.index")
    card = json.loads(fs.cat_file(f"{root}/index.json"))
    if card.get("format") != FORMAT_VERSION:
        raise SearchIndexError(f"{url}: index format {card.get('format')!r}, this version reads {FORMAT_VERSION}")
    if card["checksum"] != checksum:
        raise SearchIndexError(
            f"{url}: built with another bundle ({card['checksum'][:12]}); build it again with this one"
        )
    # Mapped files outlive their names, so a copy needs no keeping.
    with local_copy(fs, root) as folder:
        return _load(folder, card, url)


def unit(vectors: Float) -> Float:
    """Vectors (n, D) of length one, as they are compared."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(length, 1e-12), dtype=np.float32)


def _load(folder: Path, card: dict[str, Any], url: str) -> VectorIndex:
    for name in _FILES:
        path = folder / name
        if not path.is_file() or file_sha256(path) != card["files"].get(name):
            raise SearchIndexError(f"{url}: {name} is missing or does not match its checksum; build the index again")
    sentences = pq.read_table(folder / "sentences.parquet").to_pydict()
    images = pq.read_table(folder / "images.parquet").to_pydict()
    return VectorIndex(
        card,
        sentences["sentence"],
        sentences["study_ids"],
        list(zip(images["image_id"], images["study_id"], strict=True)),
        faiss.read_index(str(folder / "sentences.faiss")),
        faiss.read_index(str(folder / "images.faiss")),
        np.load(folder / "pooled.npy", mmap_mode="r"),
        np.load(folder / "tokens.npy", mmap_mode="r"),
    )


def _build(vectors: Float) -> Any:
    rows = unit(vectors)
    exact = len(rows) <= _EXACT
    width = rows.shape[1]
    index = faiss.IndexFlatIP(width) if exact else faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.add(rows)
    return index


def _nearest(index: Any, vector: Float, count: int) -> Rows:
    _, rows = index.search(unit(vector), min(count, index.ntotal))
    found: Rows = rows[0][rows[0] >= 0]
    return found
