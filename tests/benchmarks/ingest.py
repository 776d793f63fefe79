"""Ingest: speed, memory, damaged files and kills: ``python -m tests.benchmarks.ingest [--out FILE]``.

* speed: the films of ``tests.benchmarks.films`` read by a plain loop of pydicom on one thread, and by the whole
  ingest on all cores, side by side, the start of its workers included. The loop that stores writes one Parquet file
  with checksums; the other one drops what it has decoded.
* memory: the largest resident set of each kind of process, for a corpus and for one ten times as large.
* damage: files that are damaged in ways a seed decides; each must read or be refused with a reason.
* kills: SIGKILL to the ingest at random moments; the lake must equal that of an undisturbed one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom

# The plain loop decodes by pydicom with the same codecs, which this registers there.
from rayzero.studies import codecs  # noqa: F401
from rayzero.studies.errors import StudyFileError
from rayzero.studies.sandbox import Limits, Sandbox
from tests.benchmarks.films import write_films, write_table
from tests.benchmarks.harness import seconds
from tests.studies.mutations import mutants
from tests.studies.test_ingest import tree

Row = dict[str, Any]

_CORES = len(os.sched_getaffinity(0))
_FLAT = 1.15  # peak memory at ten times the studies, over that at once
_MIB = 2**20
_ROUNDS = 3


def measure_speed(folder: Path, films: int, side: int) -> list[Row]:
    """Films per second of the plain loop and of the ingest, over the same files: medians of rounds in turn."""
    paths = write_films(folder / "films", count=films, side=side)
    write_table(folder / "films", paths, studies=films)
    for path in paths:
        path.read_bytes()  # both find the files in the page cache
    decoding, storing, ingesting = [], [], []
    for turn in range(_ROUNDS):
        decoding.append(seconds(lambda: _decode(paths)))
        storing.append(seconds(lambda: _store(paths, folder / "loop.parquet")))
        text = _ingest(folder / "films", folder / f"lake-{turn}")
        speed = next(line for line in text.splitlines() if line.startswith("speed"))
        ingesting.append(float(speed.split(" over ")[1].split(" s")[0]))
    decode, store, ours = (films / statistics.median(taken) for taken in (decoding, storing, ingesting))
    name = f"films/s, {films} of {side} x {side} pixels, ingest on {_CORES} cores"
    return [
        _row(f"{name} : loop that stores", ours, store, 0.8 * _CORES),
        _row(f"{name} : loop that decodes alone", ours, decode, None),
    ]


def _decode(paths: Sequence[Path]) -> None:
    """Every film as an array, air dark: nothing is kept."""
    for path in paths:
        _film(path)


def _store(paths: Sequence[Path], target: Path) -> None:
    """Every film as a row of a Parquet file with its checksum, compressed as a lake is."""
    schema = pa.schema([("name", pa.string()), ("pixels", pa.large_binary()), ("sha256", pa.string())])
    with pq.ParquetWriter(target, schema, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
        for start in range(0, len(paths), 32):
            rows = []
            for path in paths[start : start + 32]:
                data = _film(path).tobytes()
                rows.append({"name": path.name, "pixels": data, "sha256": hashlib.sha256(data).hexdigest()})
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _film(path: Path) -> np.ndarray[Any, Any]:
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = (2**dataset.BitsStored - 1 - pixels).astype(pixels.dtype)
    return pixels


def measure_memory(folder: Path, studies: int) -> list[Row]:
    """Peak resident MiB of driver, worker and reader, for a tenth of ``studies`` and for all of them."""
    paths = write_films(folder / "small", count=60, side=512)
    peaks = []
    for count in (studies // 10, studies):
        write_table(folder / "small", paths, studies=count)
        with _watch() as seen:
            _ingest(folder / "small", folder / f"lake-{count}", seen)
        peaks.append(seen.peaks)
        if not all(seen.peaks.values()):
            raise RuntimeError(f"of an ingest's processes some were never seen: {seen.peaks}")
    return [
        _row(f"peak MiB of the {role}, {studies} : {studies // 10} studies", large, peaks[0][role], _FLAT, at_most=True)
        for role, large in peaks[1].items()
    ]


def measure_damage(count: int) -> list[Row]:
    """How many damaged files were read and how many refused, and the reader's peak memory."""
    limits = Limits(memory_bytes=2**30, cpu_seconds=20, wall_seconds=120)
    outcomes: Counter[str] = Counter()
    slowest, peak = 0.0, 0
    with Sandbox(limits=limits) as sandbox:
        for data in mutants(count, seed=11):
            start = time.monotonic()
            try:
                sandbox.read_image(data)
                outcomes["read"] += 1
            except StudyFileError as error:
                outcomes["refused" if error.reason else "refused without a reason"] += 1
                outcomes["stopped"] += "did not survive" in error.reason or "takes" in error.reason
            slowest = max(slowest, time.monotonic() - start)
            for process in sandbox.processes():
                peak = max(peak, _peak(process))
    stated = (limits.memory_bytes + 256 * _MIB) / _MIB
    return [
        _row("damaged files read or refused with a reason : given", outcomes["read"] + outcomes["refused"], count, 1.0),
        _row("of them read : refused", outcomes["read"], outcomes["refused"], None),
        _row("of them stopped by a limit : refused", outcomes["stopped"], outcomes["refused"], None),
        _row("slowest file, seconds : limit", slowest, limits.wall_seconds, 1.0, at_most=True),
        _row("peak MiB of the reader : stated limit", peak / _MIB, stated, 1.0, at_most=True),
    ]


def measure_kills(folder: Path, kills: int) -> list[Row]:
    """Lakes that equal the undisturbed one, after ``kills`` kills at random moments in all."""
    paths = write_films(folder / "killed", count=60, side=256)
    write_table(folder / "killed", paths, studies=1200)
    with _watch() as seen:
        _ingest(folder / "killed", folder / "undisturbed", seen)
    expected = _without_card(folder / "undisturbed")
    rng, done, equal, lakes = random.Random(7), 0, 0, 0
    while done < kills:
        lakes += 1
        if lakes > kills:
            raise RuntimeError(f"{5 * kills} ingests were over before {kills} could be killed")
        lake = folder / f"resumed-{lakes}"
        for _ in range(5):
            done += _kill(folder / "killed", lake, rng)
            if done == kills:
                break
        with _watch() as seen:
            _ingest(folder / "killed", lake, seen)
        equal += _without_card(lake) == expected
    return [_row(f"lakes equal to the undisturbed one, after {done} kills : lakes", equal, lakes, 1.0)]


def _kill(root: Path, lake: Path, rng: random.Random) -> int:
    """Start an ingest and kill it at a random moment of its work; 0 when it was done before."""
    process = subprocess.Popen(_command(root, lake), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    plan = lake / "ingest" / "plan.json"
    began = time.time()
    while process.poll() is None and not (plan.exists() and _work_has_begun(process.pid)):
        if time.time() - began > 300:
            raise RuntimeError("the ingest does not start")
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 8))
    process.send_signal(signal.SIGKILL)
    return int(process.wait() == -signal.SIGKILL)


def _work_has_begun(driver: int) -> bool:
    return any(_role(process) == "worker" for process in psutil.Process(driver).children(recursive=True))


def _without_card(lake: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(lake).items() if name != "card.html"}  # the card names the folder


class _Watch:
    """Samples a tree of processes for the peak memory of each role."""

    def __init__(self) -> None:
        self.driver: int | None = None
        self._peaks: dict[str, int] = {"driver": 0, "worker": 0, "reader": 0}
        self._stop = threading.Event()

    @property
    def peaks(self) -> dict[str, float]:
        return {role: peak / _MIB for role, peak in self._peaks.items()}

    def run(self) -> None:
        while not self._stop.wait(0.2):
            if self.driver is None:
                continue
            try:
                root = psutil.Process(self.driver)
                processes = [root, *root.children(recursive=True)]
            except psutil.Error:
                continue
            for process in processes:
                self._sample(process)

    def _sample(self, process: psutil.Process) -> None:
        try:
            role = "driver" if process.pid == self.driver else _role(process)
            if role:
                self._peaks[role] = max(self._peaks[role], _peak(process.pid))
        except (psutil.Error, OSError, IndexError):
            return

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def _watch() -> Iterator[_Watch]:
    watch = _Watch()
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    yield watch
    watch.stop()
    thread.join()


def _role(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
    except psutil.Error:
        return ""
    if "rayzero.studies.sandbox_process" in words:
        return "reader"
    return "worker" if words and words[0].startswith("ray::ingest_refs") else ""


def _peak(process: int) -> int:
    """The most memory that a process has held, in bytes."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
        return 1024 * int(text.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return 0


def _command(root: Path, lake: Path) -> list[str]:
    ends = ["--root", str(root), "--lake", str(lake), "--cpus", str(_CORES)]
    return [sys.executable, "-m", "jobs.ingest", "--corpus", "folder", *ends]


def _ingest(root: Path, lake: Path, watch: _Watch | None = None) -> str:
    process = subprocess.Popen(_command(root, lake), stdout=subprocess.PIPE, text=True)
    if watch:
        watch.driver = process.pid
    text, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the ingest ended with exit code {process.returncode}")
    return text


def _row(figure: str, ours: float, other: float, bar: float | None, *, at_most: bool = False) -> Row:
    ratio = ours / other if other else float("nan")
    ok = bar is None or (ratio <= bar if at_most else ratio >= bar)
    sign = "<=" if at_most else ">="
    return {
        "figure": figure,
        "ours": round(ours, 2),
        "other": round(other, 2),
        "ratio": round(ratio, 3),
        "bar": "" if bar is None else f"{sign} {bar:g}",
        "ok": ok,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--films", type=int, default=500)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--studies", type=int, default=5000)
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in (
            lambda: measure_speed(folder, options.films, options.side),
            lambda: measure_memory(folder, options.studies),
            lambda: measure_damage(options.mutants),
            lambda: measure_kills(folder, options.kills),
        ):
            for row in part():
                rows.append(row)
                cells = (row["ours"], row["other"], row["ratio"], row["bar"], "yes" if row["ok"] else "NO")
                print(
                    f"{row['figure']:70} {cells[0]:>10} {cells[1]:>10} {cells[2]:>8} {cells[3]:>9}  {cells[4]}",
                    flush=True,
                )
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                result = {"benchmark": "ingest", "cores": _CORES, "load": os.getloadavg()[0], "rows": rows}
                options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
