"""The real thing: Ray Serve, two replicas, HTTP over a socket."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import ray
import torch
from ray import serve

from rayzero.alignment import registry
from rayzero.bundle import save_bundle
from rayzero.config import Config, VisionConfig
from serve import page
from serve.allocator import KEPT_MEMORY
from serve.app import APP_NAME, build, start
from serve.settings import AppArgs, Limits
from tests.ports import free_port
from tests.serve import spans
from tests.serve.conftest import png

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def args(bundle_url: str, study_bundle_url: str, examples_folder: str) -> AppArgs:
    return AppArgs(
        bundles={"radzero": bundle_url},
        shelf={"rare": bundle_url, "studies": study_bundle_url},
        shelf_models=1,
        limits=Limits(answer_seconds=20, body_seconds=15),
        examples=examples_folder,
        threads=1,
        tracing="tests.serve.spans:hook",
    )


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where every process of the server writes its spans; the other thing that Ray's processes have to find."""
    folder = tmp_path_factory.mktemp("spans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(spans.FOLDER, str(folder))
        patch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.proxy.middlewares")
        yield folder


@pytest.fixture(scope="module")
def http(args: AppArgs, metrics_port: int, traces: Path) -> Iterator[httpx.Client]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="error",
        _metrics_export_port=metrics_port,
    )
    url = start(args, port=free_port())
    with httpx.Client(base_url=url, timeout=100, trust_env=False) as client:
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


def test_models_of_the_shelf_take_turns_and_answer_as_on_their_own(http: httpx.Client, film: bytes) -> None:
    assert [model["name"] for model in http.get("/v1/models").json()["models"]] == ["radzero", "rare", "studies"]
    own = _query(http, film).json()["results"]
    for _ in range(2):
        # One at a time fits, so each drops the other.
        for name in ("rare", "studies"):
            response = http.post("/v1/query", files={"file": film}, data={"prompts": "nodule", "model": name})
            assert response.status_code == 200, response.text
            if name == "rare":
                assert response.json()["results"][0]["logit"] == pytest.approx(own[0]["logit"], abs=1e-6)


def test_a_batch_streams_over_the_socket(http: httpx.Client) -> None:
    files = [("files", ("x", png(seed))) for seed in range(20)]
    with http.stream("POST", "/v1/batch", files=files, data={"prompts": "nodule"}) as response:
        lines = [json.loads(line) for line in response.iter_lines()]
    assert lines[-1] == {"done": 20, "failed": 0}
    one = next(line for line in lines if line.get("index") == 7)["answer"]["results"][0]
    alone = _query(http, png(7)).json()["results"][0]
    assert one["logit"] == pytest.approx(alone["logit"], abs=1e-5)


def test_figures_reach_prometheus_by_stage(http: httpx.Client, metrics_port: int) -> None:
    _query(http, png(1))
    wanted = ("rayzero_stage_seconds", "rayzero_batch_size", "rayzero_cache_lookups", "rayzero_request_seconds")
    text, deadline = "", time.monotonic() + 60
    while not all(name in text for name in wanted) and time.monotonic() < deadline:
        time.sleep(1)
        text = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", trust_env=False).text
    for name in wanted:
        assert name in text
    for stage in ("read", "prepare", "queue", "encode", "score"):
        assert re.search(rf'rayzero_stage_seconds_count{{[^}}]*stage="{stage}"', text), stage
    assert "img-" not in "".join(line for line in text.splitlines() if "rayzero_" in line)


def test_a_trace_goes_on_into_the_replica_of_the_model(http: httpx.Client, traces: Path) -> None:
    def ask(model: str, seed: int) -> tuple[str, dict[str, dict]]:
        caller = uuid.uuid4().hex
        files, form = {"file": ("Roe.png", png(seed))}, {"prompts": "Roe", "model": model, "maps": "array"}
        headers = {"traceparent": f"00-{caller}-{'b' * 16}-01"}
        answer = http.post("/v1/query", files=files, data=form, headers=headers)
        assert answer.status_code == 200, answer.text
        deadline, found = time.monotonic() + 20, []
        # That of the request ends last, and perhaps after its answer came.
        while "POST /v1/query" not in {one["name"] for one in found} and time.monotonic() < deadline:
            time.sleep(0.1)
            found = spans.of_trace(traces, caller)
        told = json.dumps(found)
        assert "Roe" not in told
        assert answer.json()["image"]["image_id"] not in told
        return caller, {one["name"]: one for one in found}

    # At once, so that they share a batch: each has the pass in its own trace.
    with ThreadPoolExecutor(3) as pool:
        asked = list(pool.map(lambda seed: ask("radzero", seed), (91, 92, 93)))
    for _, found in [*asked, ask("rare", 94)]:
        request, model, answer = found["POST /v1/query"], found["model"], found["answer"]
        assert request["parent_id"] == "0x" + "b" * 16
        for stage in ("read", "prepare", "model", "maps"):
            assert found[stage]["parent_id"] == request["context"]["span_id"]
        assert answer["parent_id"] == model["context"]["span_id"]
        assert answer["process"] != request["process"]
        for stage in ("queue", "encode", "score"):
            assert found[stage]["parent_id"] == answer["context"]["span_id"], stage
            assert answer["start_time"] <= found[stage]["start_time"] <= found[stage]["end_time"]
            assert found[stage]["end_time"] <= answer["end_time"]
        assert found["encode"]["end_time"] <= found["score"]["start_time"]
    assert found["load"]["parent_id"] == model["context"]["span_id"]
    assert found["load"]["attributes"]["rayzero.model"] == "rare"


def test_the_page_is_served_beside_the_api(http: httpx.Client) -> None:
    serve.run(page.build(page.PageArgs(server=str(http.base_url))), name="page", route_prefix="/ui")
    answer = http.get("/ui/")
    assert answer.status_code == 200
    assert "RayZero reading room" in answer.text
    # What the browser asks next stands below the same prefix, not at the root of the server.
    assert f"{http.base_url}/ui".rstrip("/") in http.get("/ui/config").json()["root"]
    assert http.get("/readyz").json() == {"status": "ready"}
    serve.delete("page")


def test_a_slow_client_is_told_so_and_holds_up_nobody(http: httpx.Client, args: AppArgs) -> None:
    head = "POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection((http.base_url.host, http.base_url.port or 80), timeout=60) as slow:
        slow.sendall(f"{head}Content-Length: 1000\r\n\r\n--b\r\n".encode())
        began = time.monotonic()
        assert all(_query(http, png(seed)).status_code == 200 for seed in range(3))
        answer = slow.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began >= args.limits.body_seconds - 1


def test_what_fails_in_the_proxy_is_a_problem_too(http: httpx.Client) -> None:
    wrong = ("X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled", "X-Request-ID", "serve_multiplexed_model_id")
    for name in wrong:
        answer = http.get("/v1/models", headers=[(name.encode(), b"\xff")])
        assert answer.status_code == 400, name
        assert answer.json()["type"] == "urn:rayzero:problem:invalid-request"
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    late = http.get("/v1/models", headers={"X-Request-Timeout-Seconds": "0.0001"})
    assert (late.status_code, late.json()["type"]) == (503, "urn:rayzero:problem:interrupted")
    assert "retry-after" in late.headers
    assert http.get("/v1/models", headers={"X-Request-Timeout-Seconds": "nan"}).status_code == 200


def _replica(deployment: str) -> psutil.Process:
    children = psutil.Process().children(recursive=True)
    return next(one for one in children if f"ServeReplica:{APP_NAME}:{deployment}" in " ".join(one.cmdline()))


def test_replicas_of_models_keep_freed_memory(http: httpx.Client) -> None:
    assert _query(http, png()).status_code == 200
    # As set when the process started; glibc cuts the value up in place, after its first setting.
    first, _ = KEPT_MEMORY["GLIBC_TUNABLES"].split(":", 1)
    assert _replica("model-radzero").environ()["GLIBC_TUNABLES"].startswith(first)


def test_a_web_replica_that_dies_under_load_gives_no_wrong_answer(http: httpx.Client) -> None:
    expected = {seed: _query(http, png(seed)).json()["results"] for seed in range(20)}
    replica, killed, after = _replica("web"), threading.Event(), threading.Semaphore(12)

    def load(seed: int) -> list[httpx.Response]:
        answers = []
        # Those that come while there is no replica wait for the next.
        while not killed.is_set() or after.acquire(blocking=False):
            answers.append(_query(http, png(seed)))
        return answers

    with ThreadPoolExecutor(4) as pool:
        running = {seed: pool.submit(load, seed) for seed in range(4)}
        files = [("files", ("x", png(seed))) for seed in expected]
        lines: list[str] = []
        with http.stream("POST", "/v1/batch", files=files, data={"prompts": "nodule"}) as batch:
            try:
                for line in batch.iter_lines():
                    lines.append(line)
                    if len(lines) == 1:
                        replica.kill()
            except httpx.RemoteProtocolError:
                assert "done" not in lines[-1]
            else:
                # It was answered in full before.
                assert json.loads(lines[-1]) == {"done": 20, "failed": 0}
        killed.set()
        answers = [(seed, answer) for seed, one in running.items() for answer in one.result()]
    for line in map(json.loads, lines):
        if "answer" in line:
            logit = line["answer"]["results"][0]["logit"]
            assert logit == pytest.approx(expected[line["index"]][0]["logit"], abs=1e-5)
    codes = {answer.status_code for _, answer in answers}
    assert codes <= {200, 503}
    assert 503 in codes or "done" not in lines[-1], "nothing was in flight"
    deadline = time.monotonic() + 90
    while (last := _query(http, png(0))).status_code != 200 and time.monotonic() < deadline:
        time.sleep(1)
    assert last.json()["results"] == expected[0]
    for seed, answer in answers:
        if answer.status_code == 200:
            assert answer.json()["results"][0]["logit"] == pytest.approx(expected[seed][0]["logit"], abs=1e-5)
        else:
            assert answer.json()["type"] in {f"urn:rayzero:problem:{slug}" for slug in ("interrupted", "busy")}
            assert "retry-after" in answer.headers


def test_a_replica_that_dies_under_load_gives_no_wrong_answer(http: httpx.Client) -> None:
    # A finding that differs by request would be encoded anew; images repeat, so that right answers are known.
    expected = {seed: _query(http, png(seed)).json()["results"] for seed in range(6)}
    replica = _replica("model-radzero")

    def ask(number: int) -> tuple[int, httpx.Response]:
        if number == 12:
            replica.kill()
        return number % 6, _query(http, png(number % 6))

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(60)))
    for seed, answer in answers:
        if answer.status_code == 200:
            for one, other in zip(answer.json()["results"], expected[seed], strict=True):
                assert one["logit"] == pytest.approx(other["logit"], abs=1e-5)
        else:
            assert answer.status_code == 503, answer.text
            assert "retry-after" in answer.headers
    deadline = time.monotonic() + 90
    while _query(http, png(0)).status_code != 200 and time.monotonic() < deadline:
        time.sleep(1)
    assert _query(http, png(0)).status_code == 200


def test_a_model_swapped_under_load_gives_no_wrong_answer(
    http: httpx.Client, args: AppArgs, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Another resolution: what was prepared for one model must not reach the other.
    torch.manual_seed(1)
    config = registry.resolve(Config(vision=VisionConfig(resolution=160)))
    folder = tmp_path_factory.mktemp("other") / "radzero"
    other = save_bundle(str(folder), registry.build(config), config, {"vocabulary": ["nodule"]})
    seeds = range(4)
    expected = [_query(http, png(seed)).json() for seed in seeds]
    answers: list[tuple[int, httpx.Response]] = []
    swapped = threading.Event()

    def load(seed: int) -> None:
        while not swapped.is_set():
            answers.append((seed, _query(http, png(seed))))

    with ThreadPoolExecutor(len(seeds)) as pool:
        running = [pool.submit(load, seed) for seed in seeds]
        try:
            serve.run(build(args.model_copy(update={"bundles": {"radzero": other}})), name=APP_NAME, route_prefix="/")
        finally:
            time.sleep(1)
            swapped.set()
        for one in running:
            one.result()
    deadline = time.monotonic() + 60
    while (last := _query(http, png(0))).status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert last.json()["checksum"] != expected[0]["checksum"]
    right = {expected[0]["checksum"]: expected, last.json()["checksum"]: [_query(http, png(s)).json() for s in seeds]}
    assert len(answers) > len(seeds)
    for seed, answer in answers:
        if answer.status_code == 200:
            found = answer.json()
            wanted = right[found["checksum"]][seed]
            assert found["results"][0]["logit"] == pytest.approx(wanted["results"][0]["logit"], abs=1e-5)
            assert found["results"][0]["map"]["shape"] == wanted["results"][0]["map"]["shape"]
        else:
            assert answer.status_code == 503, answer.text
            assert answer.json()["type"].startswith("urn:rayzero:problem:")
            assert "retry-after" in answer.headers
