"""A small lake of synthetic films: bright discs and bars whose places are known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rayzero.studies.lake import Lake, write_lake
from rayzero.studies.study import Image, Mask, Region, Sentence, Study

FINDINGS = ("cardiomegaly", "pleural effusion", "lung mass")
"""Two seen findings and one of the never-seen; the last occurs in the test split alone."""


def make_lake(folder: Path | str, *, validation: int = 12, test: int = 24, seed: int = 0) -> Lake:
    """A lake of ``validation`` + ``test`` studies, two per patient: 60 x 80 films with boxes, masks, sentences."""
    return write_lake(str(folder), [*studies("validation", validation, seed), *studies("test", test, seed + 1)])


def studies(split: str, count: int, seed: int) -> Iterator[Study]:
    """``count`` studies of ``split``, each with a lateral view that must not be evaluated."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        yield study(split, f"{split}{index:03d}", f"{split}-p{index // 2:03d}", rng)


def study(split: str, name: str, patient: str, rng: np.random.Generator) -> Study:
    """One study; every label is drawn at random, one in ten uncertain."""
    film = rng.normal(8000, 800, size=(60, 80))
    labels: dict[str, int] = {}
    regions: list[Region] = []
    sentences: list[Sentence] = []
    for finding in FINDINGS:
        absent = split != "test" and finding == "lung mass"
        labels[finding] = 0 if absent else int(rng.choice([1, 0, -1], p=[0.45, 0.45, 0.1]))
        status = {1: "present", 0: "absent", -1: "uncertain"}[labels[finding]]
        text = {"present": "There is {}", "absent": "There is no {}", "uncertain": "There may be {}"}[status]
        sentences.append(Sentence(text=text.format(finding), status=status, finding=finding))  # type: ignore[arg-type]
        if labels[finding] == 1:
            x, y = int(rng.integers(0, 60)), int(rng.integers(0, 40))
            film[y : y + 20, x : x + 20] += 20000
            mask = np.zeros((60, 80), dtype=bool)
            mask[y + 2 : y + 18, x + 2 : x + 18] = True
            box = (float(x), float(y), float(x + 20), float(y + 20))
            regions.append(
                Region(image_id=f"{name}-f", finding=finding, phrase=finding, box=box, mask=Mask.from_array(mask))
            )
    pixels = np.clip(film, 0, 65535).astype(np.uint16)
    images = (
        Image.from_array(f"{name}-l", pixels, view="lateral", bits=16),
        Image.from_array(f"{name}-f", pixels, view="frontal", bits=16),
    )
    return Study(
        study_id=name,
        patient_id=patient,
        corpus="synthetic",
        split=split,  # type: ignore[arg-type]
        images=images,
        labels=labels,
        regions=tuple(regions),
        sentences=tuple(sentences),
    )
