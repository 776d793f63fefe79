"""Ten thousand malformed requests to a real server: what it answers, and what becomes of its processes.

python -m tests.benchmarks.malformed [--count 10000] [--out FILE]

Three quarters are damaged DICOM, PNG, JPEG, NIfTI and zipped series, to be scored alone or in a batch or answered as
DICOM; the rest is what schemathesis makes of the OpenAPI document. Right requests come in between, whose answers must
stay the same. Memory is that of the replica that reads and answers, and of the largest of its reading processes: one
that was just killed is not there yet to be counted.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
from ray import serve

from serve.app import APP_NAME, start
from serve.settings import AppArgs, Limits
from tests.benchmarks.harness import Row, report
from tests.benchmarks.serving import image, untrained
from tests.ports import free_port
from tests.serve.conftest import small_volume_bundle
from tests.serve.malformed import damaged_files, is_sound, send_what_the_document_allows, status_of
from tests.studies.scans import chest, nifti_bytes

_CLIENTS = 8
_EVERY = 50
# One request in so many is made from the OpenAPI document.
_SCHEMA_SHARE = 4
# Requests after which the caches and the allocator are taken to be full.
_WARM = 2000
# Small, so that the former are: what is measured is what does not go away.
_LIMITS = Limits(image_cache_bytes=8 * 2**20)
# Where the damaged files go, in turn.
_ROUTES = ("query", "dicom", "query", "batch")
# A connection that ends without an answer counts as a failure of the server.
_CUT_OFF = httpx.Response(599)
_DEPLOYMENTS = ("web", "model-films", "model-ct")


class Traffic:
    """Malformed requests, with right ones in between, and how they were answered."""

    def __init__(self, http: httpx.Client) -> None:
        self.statuses: Counter[int] = Counter()
        self.wrong = self.unsent = 0
        self._http = http
        self._right = {"films": image(0), "ct": nifti_bytes(chest())}
        self._expected = {
            model: self._ask("query", model, file).json()["results"] for model, file in self._right.items()
        }

    def damage(self, files: Iterator[tuple[str, bytes]], count: int) -> None:
        """The next ``count`` of ``files``."""
        with ThreadPoolExecutor(_CLIENTS) as pool:
            while batch := list(islice(files, min(_EVERY, count))):
                count -= len(batch)
                asked = [(_ROUTES[place // 2 % len(_ROUTES)], *pair) for place, pair in enumerate(batch)]
                for answer in pool.map(lambda one: self._ask(*one), asked):
                    self._note(answer)
                self._check()

    def schema(self, count: int) -> None:
        """``count`` requests made from the OpenAPI document."""
        seen = 0

        def send(arguments: dict[str, Any]) -> None:
            nonlocal seen
            seen += 1
            try:
                answer = self._http.request(**arguments)
            except (httpx.InvalidURL, httpx.LocalProtocolError, TypeError, ValueError):
                # The client's own library holds that it is no request.
                self.unsent += 1
            except httpx.TransportError:
                self._note(_CUT_OFF)
            else:
                self._note(answer)
            if seen % _EVERY == 0:
                self._check()

        send_what_the_document_allows(
            self._http.get("/openapi.json").json(), send, count=count, url=str(self._http.base_url)
        )

    def _ask(self, route: str, model: str, file: bytes) -> httpx.Response:
        form = {"prompts": "nodule", "model": model}
        try:
            return self._http.post(f"/v1/{route}", files={"files" if route == "batch" else "file": file}, data=form)
        except httpx.TransportError:
            return _CUT_OFF

    def _right_answer(self, model: str) -> Any:
        answer = self._ask("query", model, self._right[model])
        return answer.json()["results"] if answer.status_code == 200 else None

    def _note(self, answer: httpx.Response) -> None:
        self.statuses[status_of(answer)] += 1
        self.wrong += not is_sound(answer)

    def _check(self) -> None:
        for model, expected in self._expected.items():
            self.wrong += self._right_answer(model) != expected


def malformed(films: str, ct: str, count: int) -> list[Row]:
    """The rows of the table."""
    address = start(AppArgs(bundles={"films": films, "ct": ct}, limits=_LIMITS), port=free_port())
    with httpx.Client(base_url=address, timeout=120, trust_env=False) as http:
        traffic = Traffic(http)
        before_all = {name: _replica(name) for name in _DEPLOYMENTS}
        if unseen := [name for name, process in before_all.items() if process is None]:
            # Neither a restart nor growth of memory would be seen of them.
            raise SystemExit(f"no process of {', '.join(unseen)} was found among those that this one started")
        made, warm = count // _SCHEMA_SHARE, min(_WARM, count // 2)
        files = damaged_files(count - made, seed=0)
        traffic.damage(files, warm)
        before = _memory(_replica("web"))
        traffic.schema(made)
        traffic.damage(files, count - made - warm)
        own, reader = (after - at_first for after, at_first in zip(_memory(_replica("web")), before, strict=True))
        restarted = sum(_replica(name) != process for name, process in before_all.items())
    print("answers by status:", dict(sorted(traffic.statuses.items())), f"and {traffic.unsent} that cannot be sent")
    failed = sum(number for status, number in traffic.statuses.items() if status >= 500)
    return [
        Row("malformed requests", sum(traffic.statuses.values())),
        Row("answers of 500 and above", failed, bar=0),
        Row("wrong answers", traffic.wrong, bar=0),
        Row("restarted replicas", restarted, bar=0),
        Row("growth of the replica's memory, MiB", own / 2**20, bar=50),
        # An allocator keeps so much of what it is given back (rayzero.studies.sandbox).
        Row("growth of its largest reading process, MiB", reader / 2**20, bar=128),
    ]


def _replica(name: str) -> psutil.Process | None:
    """The one replica of a deployment of the cluster that this process started; None while there is none."""
    for one in psutil.Process().children(recursive=True):
        try:
            if f"ServeReplica:{APP_NAME}:{name}" in " ".join(one.cmdline()):
                return one
        except psutil.Error:
            continue
    return None


def _memory(process: psutil.Process | None) -> tuple[int, int]:
    """Of the replica, and of the largest of its reading processes."""
    if process is None:
        return 0, 0
    readers = [one.memory_info().rss for one in process.children(recursive=True)]
    return int(process.memory_info().rss), max(readers, default=0)


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.malformed", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args()
    # The proxy reads its environment alone, where Ray starts.
    os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "serve.proxy.middlewares"
    ray.init(address="local", include_dashboard=False, logging_level="error")
    with tempfile.TemporaryDirectory() as folder:
        films, ct = Path(folder, "films"), Path(folder, "ct")  # each writes a folder of the same name below
        ct.mkdir()
        rows = malformed(untrained(films), small_volume_bundle(ct), options.count)
    serve.shutdown()
    ray.shutdown()
    raise SystemExit(0 if report("malformed", rows, options.out) else 1)


if __name__ == "__main__":
    main()
