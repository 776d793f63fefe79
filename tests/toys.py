"""Toy studies: small films with a bright disc or bar, told apart in a second, for tests that need a lake or a model."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from rayzero.studies.lake import Lake, write_lake
from rayzero.studies.study import Image, Mask, Region, Report, Sentence, Study

FINDINGS = ("lung nodule", "pleural effusion")


def toy_study(index: int, split: str, *, size: int = 64) -> Study:
    """Study ``index``: bit 0 of the index decides the nodule (a disc), bit 1 the effusion (a bar)."""
    rng = np.random.default_rng(index)
    film = rng.normal(300, 20, (size, size))
    present = {name: bool(index >> bit & 1) for bit, name in enumerate(FINDINGS)}
    masks = {name: np.zeros((size, size), bool) for name in FINDINGS}
    y, x = rng.integers(size // 6, size // 2, 2)
    rows, columns = np.mgrid[:size, :size]
    masks[FINDINGS[0]] = (rows - y) ** 2 + (columns - x) ** 2 < (size // 10) ** 2
    masks[FINDINGS[1]][-size // 6 :, :] = True
    for name, there in present.items():
        film[masks[name]] += 400 * there
    study_id = f"toy-{split}-{index:04d}"
    image = Image.from_array(
        f"{study_id}/pa", film.clip(0, 1023).astype(np.uint16), view="frontal", bits=10, spacing_mm=(1.0, 1.0)
    )
    sentences = tuple(
        Sentence(
            text=f"There is {'a ' if there else 'no '}{name}",
            status="present" if there else "absent",
            finding=name,
        )
        for name, there in present.items()
    )
    regions = tuple(
        Region(
            image_id=image.image_id,
            finding=name,
            phrase=f"There is a {name}",
            box=_box(masks[name]),
            mask=Mask.from_array(masks[name]),
        )
        for name, there in present.items()
        if there
    )
    return Study(
        study_id=study_id,
        patient_id=f"P{index:04d}{split}",
        corpus="toy",
        split=split,  # type: ignore[arg-type]
        study_time=datetime(2030, 1, 1),
        images=(image,),
        report=Report(text=". ".join(s.text for s in sentences)),
        sentences=sentences,
        labels={name: int(there) for name, there in present.items()},
        regions=regions,
    )


def toy_lake(url: str, *, train: int = 64, validation: int = 16, test: int = 16) -> Lake:
    """A lake of toy studies."""
    counts = {"train": train, "validation": validation, "test": test}
    return write_lake(url, (toy_study(i, split) for split, count in counts.items() for i in range(count)))


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:  # type: ignore[type-arg]
    rows, columns = np.nonzero(mask)
    return (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
