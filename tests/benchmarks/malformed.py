"""Ten thousand malformed files against a real server: what it answers, and what becomes of its processes.

python -m tests.benchmarks.malformed [--count 10000] [--out FILE]

Damaged DICOM, PNG, JPEG, NIfTI and zipped series in turn, with right requests in between, whose answers must stay
the same. Memory is that of the replica that reads and answers, its reading processes included.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import ray
from ray import serve

from serve.app import start
from serve.settings import AppArgs
from tests.benchmarks.harness import Row, report
from tests.benchmarks.serving import image, untrained
from tests.ports import free_port
from tests.serve.conftest import small_volume_bundle
from tests.serve.malformed import damaged_files, is_problem

_CLIENTS = 8
_EVERY = 50
# Requests after which the caches and the allocator are taken to be full.
_WARM = 1000


def malformed(films: str, ct: str, count: int) -> list[Row]:
    """The rows of the table."""
    address = start(AppArgs(bundles={"films": films, "ct": ct}), port=free_port())
    right = image(0)
    statuses: Counter[int] = Counter()
    wrong = 0
    with httpx.Client(base_url=address, timeout=120, trust_env=False) as http:

        def ask(model: str, file: bytes) -> httpx.Response:
            return http.post("/v1/query", files={"file": file}, data={"prompts": "nodule", "model": model})

        expected = ask("films", right).json()["results"]
        web = _replica("web")
        pids = {name: _replica(name).pid for name in ("web", "model-films", "model-ct")}
        before = 0
        with ThreadPoolExecutor(_CLIENTS) as pool:
            answers = pool.map(lambda pair: ask(*pair), damaged_files(count, seed=0))
            for number, answer in enumerate(answers):
                statuses[answer.status_code] += 1
                # Some damage leaves a file that reads: those are answered.
                sound = answer.status_code == 200 or is_problem(answer.headers["content-type"], answer.json())
                wrong += not sound
                if number % _EVERY == 0:
                    wrong += ask("films", right).json().get("results") != expected
                if number == min(_WARM, count // 2):
                    before = _memory(web)
        grown = _memory(web) - before
        restarted = sum(_replica(name).pid != pid for name, pid in pids.items())
    print("answers by status:", dict(sorted(statuses.items())))
    failed = sum(number for status, number in statuses.items() if status >= 500)
    return [
        Row("malformed requests", count),
        Row("answers of 500 and above", failed, bar=0),
        Row("wrong answers", wrong, bar=0),
        Row("restarted replicas", restarted, bar=0),
        Row("growth of memory, MiB", grown / 2**20, bar=50),
    ]


def _replica(name: str) -> psutil.Process:
    """The one replica of a deployment of the cluster that this process started."""
    processes = psutil.Process().children(recursive=True)
    return next(one for one in processes if f":{name}" in " ".join(one.cmdline()))


def _memory(process: psutil.Process) -> int:
    return sum(one.memory_info().rss for one in (process, *process.children()))


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.malformed", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args()
    ray.init(address="local", include_dashboard=False, logging_level="error")
    with tempfile.TemporaryDirectory() as folder:
        rows = malformed(untrained(Path(folder)), small_volume_bundle(Path(folder)), options.count)
    serve.shutdown()
    ray.shutdown()
    raise SystemExit(0 if report("malformed", rows, options.out) else 1)


if __name__ == "__main__":
    main()
