"""The real thing: Ray Serve, two replicas, HTTP over a socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from serve.app import start
from serve.settings import AppArgs
from tests.serve.conftest import png

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def http(bundle_url: str, examples_folder: str) -> Iterator[httpx.Client]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error")
    args = AppArgs(bundles={"radzero": bundle_url}, examples=examples_folder, threads=1)
    url = start(args, port=free_port())
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client
    serve.shutdown()
    ray.shutdown()


def _query(http: httpx.Client, file: bytes, prompt: str = "nodule") -> httpx.Response:
    files = {"file": ("text.dcm", file)}
    return http.post("/v1/query", files=files, data={"prompts": prompt, "maps": "array"})


def test_the_server_is_ready(http: httpx.Client) -> None:
    assert http.get("/readyz").json() == {"status": "ready"}


def test_one_film_in_two_encodings_scores_the_same(http: httpx.Client, film: bytes, film_j2k: bytes) -> None:
    one, other = (_query(http, data).json() for data in (film, film_j2k))
    assert one["results"] == other["results"]
    assert one["image"]["view"] == "frontal"


def test_bad_input_is_a_problem_and_the_server_goes_on(http: httpx.Client, film: bytes) -> None:
    bad = {
        "unreadable-file": [_query(http, film[:100_000]), _query(http, b"plain text\n" * 50)],
        "invalid-prompts": [_query(http, film, "x" * 10_000)],
        "unsupported-image": [_query(http, b"PK\x03\x04" + bytes(100))],
        "unknown-image": [http.post("/v1/query", data={"prompts": "nodule", "image_id": "img-0"})],
        "file-too-large": [_query(http, bytes(66 * 2**20))],
    }
    for slug, responses in bad.items():
        for response in responses:
            assert 400 <= response.status_code < 500, response.text
            assert response.json()["type"] == f"urn:rayzero:problem:{slug}"
            assert response.headers["content-type"] == "application/problem+json"
            assert "text.dcm" not in response.text
            assert str(Path.cwd()) not in response.text
    assert _query(http, png()).status_code == 200


def test_more_than_the_limit_is_answered_busy_and_nothing_fails(http: httpx.Client) -> None:
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda seed: _query(http, png(seed, 400, 400)), range(64)))
    codes = {answer.status_code for answer in answers}
    assert codes <= {200, 503}
    assert 200 in codes
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["type"].startswith("urn:rayzero:problem:")
            assert "retry-after" in answer.headers
