"""Simulate a corpus of chest studies: films or CT, reports, labels and regions, on all CPUs of the Ray cluster.

python -m jobs.phantom --root data/phantom --patients 500
python -m jobs.phantom --root data/phantom-ct --patients 300 --modality ct --ct-spacing 4
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import ray

from jobs.command import connect, main, whole_number
from rayzero.config import ConfigError
from rayzero.phantom.files import CtFormat, StudyRecord, finish_corpus, patient_splits, write_patient
from rayzero.phantom.patient import Split

# Patients per task: a few seconds of work, so that progress moves and no core idles at the end.
_CHUNK = 8


def simulate(
    root: Path,
    *,
    patients: int,
    seed: int,
    film_size: int = 512,
    fractions: tuple[float, float, float],
    films: bool = True,
    ct: CtFormat = "none",
    ct_spacing: float = 3.0,
) -> list[StudyRecord]:
    """Write a corpus of ``patients`` to ``root`` (a folder that every node sees) and return its studies.

    ``fractions`` are the shares of train, validation and test patients; ``films`` and ``ct`` say what each study
    holds, ``ct_spacing`` the size of a voxel in mm. Raises ConfigError when ``root`` already holds a corpus.
    """
    if (root / "studies.csv").exists():
        raise ConfigError(f"{root} already holds a corpus; choose another folder or delete it")
    root.mkdir(parents=True, exist_ok=True)
    splits = patient_splits(patients, fractions)
    pending = [
        _write.remote(str(root), seed, start, list(splits[start : start + _CHUNK]), film_size, films, ct, ct_spacing)
        for start in range(0, patients, _CHUNK)
    ]
    records: list[StudyRecord] = []
    began = shown = time.monotonic()
    while pending:
        done, pending = ray.wait(pending)
        for part in ray.get(done):
            records += part
        now = time.monotonic()
        if now - shown > 5 or not pending:
            shown = now
            print(f"phantom: {len(records)} studies, {len(records) / (now - began):.1f} studies/s", flush=True)
    finish_corpus(root, records)
    return records


@ray.remote(num_cpus=1)
def _write(
    root: str, seed: int, start: int, splits: list[Split], film_size: int, films: bool, ct: CtFormat, ct_spacing: float
) -> list[StudyRecord]:
    records: list[StudyRecord] = []
    for index, split in enumerate(splits, start):
        records += write_patient(
            root, seed, index, split, film_size=film_size, films=films, ct=ct, ct_spacing=ct_spacing
        )
    return records


def run(arguments: Sequence[str]) -> None:
    """Parse ``arguments`` and simulate."""
    parser = argparse.ArgumentParser(prog="python -m jobs.phantom", description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True, type=Path, help="folder to write")
    parser.add_argument("--patients", type=whole_number(1), default=500)
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--film-size", type=whole_number(64, 4096), default=512, help="rows and columns of a film")
    parser.add_argument("--modality", choices=("films", "ct", "both"), default="films", help="what each study holds")
    parser.add_argument("--ct-spacing", type=float, default=3.0, help="side of a CT voxel in mm, 1 to 10")
    parser.add_argument(
        "--ct-format", choices=("dicom", "nifti"), default="dicom", help="a series of slices, or one file"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.ct_spacing <= 10:
        raise ConfigError(f"--ct-spacing {options.ct_spacing:g}: give 1 to 10 mm")
    connect()
    records = simulate(
        options.root.resolve(),
        patients=options.patients,
        seed=options.seed,
        film_size=options.film_size,
        fractions=(0.7, 0.1, 0.2),
        films=options.modality != "ct",
        ct="none" if options.modality == "films" else options.ct_format,
        ct_spacing=options.ct_spacing,
    )
    print(
        f"{len(records)} studies in {options.root}; next: python -m jobs.ingest --corpus phantom --root {options.root}"
    )


if __name__ == "__main__":
    main(run)
