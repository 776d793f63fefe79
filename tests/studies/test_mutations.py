"""Damaged files: each one reads or is refused with a reason, within the limits, and the reader stays in service."""

from __future__ import annotations

from pathlib import Path

from rayzero.studies.errors import StudyFileError
from rayzero.studies.sandbox import Limits, Sandbox
from tests.studies.films import film_bytes
from tests.studies.mutations import mutants

STAGES = {"open", "header", "decode", "pixels"}


def test_every_damaged_file_reads_or_is_refused() -> None:
    limits = Limits(memory_bytes=2**30, cpu_seconds=10, wall_seconds=60)
    read, refusals = 0, []
    with Sandbox(limits=limits) as sandbox:
        for data in mutants(300, seed=5):
            try:
                image = sandbox.read_image(data)
            except StudyFileError as error:
                refusals.append(error)
            else:
                read += 1
                assert len(image.array()) == image.shape[0]
        assert sandbox.read_image(film_bytes()).shape == (64, 96)
        peak = _peak_bytes(sandbox.processes()[0])
    assert read + len(refusals) == 300
    assert min(read, len(refusals)) > 20
    assert {error.stage for error in refusals} <= STAGES
    assert all(error.reason.strip() and "\n" not in error.reason and len(error.reason) < 400 for error in refusals)
    assert peak < limits.memory_bytes + 256 * 2**20


def _peak_bytes(process: int) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(text.split("VmHWM:")[1].split()[0])
