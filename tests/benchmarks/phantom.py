"""How fast the simulated chest is: ``python -m tests.benchmarks.phantom [--out FILE]``.

Counts processor seconds of this one process, so that the figure is per core whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rayzero.phantom import render_ct, render_films, sample_patient, write_patient, write_report

_BAR = {"render": 5.0, "write": 4.0, "text": 500.0, "ct": 1.0}
_SEED = 97


def measure(patients: int) -> list[dict[str, object]]:
    """Studies per second of processor time for each kind of work, against the bar each must reach."""
    studies = [study for index in range(patients) for study in sample_patient(_SEED, index, "test").studies]
    render_films(studies[0], 512)

    def render() -> int:
        for study in studies:
            render_films(study, 512)
            write_report(study)
        return len(studies)

    def write() -> int:
        with tempfile.TemporaryDirectory() as folder:
            return sum(len(write_patient(folder, _SEED, index, "test")) for index in range(patients))

    def text() -> int:
        return sum(
            bool(write_report(s)) for i in range(20 * patients) for s in sample_patient(_SEED, i, "test").studies
        )

    def volume() -> int:
        return sum(render_ct(study, 3.0).hu.ndim > 0 for study in studies[:8])

    return [
        _row("two-view studies/s/core, 512 px films with masks and report", render, _BAR["render"]),
        _row("two-view studies/s/core, also written as DICOM", write, _BAR["write"]),
        _row("patients' texts/s/core, findings and report only", text, _BAR["text"]),
        _row("CT volumes/s/core, 3 mm voxels with masks", volume, _BAR["ct"]),
    ]


def _row(figure: str, work: Callable[[], int], bar: float) -> dict[str, object]:
    start = time.process_time()
    done = work()
    rate = done / (time.process_time() - start)
    return {"figure": figure, "measured": round(rate, 2), "bar": bar, "ok": rate >= bar}


def main() -> None:
    """Print the table and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--patients", type=int, default=24)
    arguments = parser.parse_args()
    rows = measure(arguments.patients)
    print(f"{'figure':64} {'measured':>9} {'bar':>7}  ok")
    for row in rows:
        print(f"{row['figure']:64} {row['measured']:>9} {row['bar']:>7}  {'yes' if row['ok'] else 'NO'}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"benchmark": "phantom", "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
