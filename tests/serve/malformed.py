"""Files that are wrong in many ways, for the two kinds of model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.studies.mutations import mutants
from tests.studies.scans import chest, nifti_bytes, series, zipped


def damaged_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` files with the name of the model that is to read each: films and CT in turn."""
    rng = np.random.default_rng(seed)
    films = mutants((count + 1) // 2, seed)
    volumes = (nifti_bytes(chest()), nifti_bytes(chest(), zipped=False), zipped(series(chest())))
    for number in range(count):
        if number % 2 == 0:
            yield "films", next(films)
        else:
            yield "ct", _damaged(volumes[number // 2 % 3], rng)


def is_problem(media_type: str, document: dict[str, object]) -> bool:
    """Whether an answer is a problem document of this server."""
    named = str(document.get("type", "")).startswith("urn:rayzero:problem:")
    return media_type == "application/problem+json" and named and bool(document.get("detail"))


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    if rng.random() < 0.3:
        return bytes(changed[: int(rng.integers(1, len(changed)))])
    # Mostly in the header, where the lies are.
    end = 600 if rng.random() < 0.6 else len(changed)
    for place in rng.integers(0, min(end, len(changed)), int(rng.integers(1, 20))):
        changed[place] = rng.integers(0, 256)
    return bytes(changed)
