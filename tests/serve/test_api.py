"""The HTTP interface in one process: the real routes and a real, untrained model; no Ray."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image as PillowImage
from starlette.types import ASGIApp

from rayzero.bundle import load_bundle
from rayzero.config import override
from rayzero.studies.files import read_image
from rayzero.studies.sandbox import Sandbox
from serve import findings
from serve.api import create_api
from serve.engine import Answer, Engine, ModelInput
from serve.examples import ExamplesError, ExampleSet
from serve.problems import Problem
from serve.schemas import MapFormat
from serve.service import Question, Service
from serve.settings import Limits
from serve.subjects import Source
from tests.serve.conftest import VOCABULARY, png
from tests.serve.leaving import drawn_for_who_left
from tests.serve.local import LocalClient

LIMITS = Limits(file_bytes=8 * 2**20, prompts=4, prompt_chars=64, requests=1)


@pytest.fixture(scope="module")
def engine(bundle_url: str) -> Engine:
    return Engine.load("radzero", bundle_url, "cpu", cached_prompts=8)


@pytest.fixture
def model(engine: Engine) -> LocalClient:
    return LocalClient(engine)


@pytest.fixture
def http(model: LocalClient, examples_folder: str, reader: Sandbox) -> Iterator[TestClient]:
    service = Service([model], ExampleSet.load(examples_folder), LIMITS, reader=reader)
    with TestClient(create_api(service, token=None)) as client:
        yield client


def ask(http: TestClient, file: bytes | None = None, **form: object) -> dict:
    files = None if file is None else {"file": ("name.dcm", file)}
    response = http.post("/v1/query", files=files, data={"prompts": ["nodule"], **form})
    return {**response.json(), "http_status": response.status_code, "media": response.headers["content-type"]}


def test_scores_boxes_and_maps_of_an_upload(http: TestClient) -> None:
    answer = ask(http, png(), prompts=["nodule", "There is pleural effusion"], maps="array", threshold="0.4")
    assert [(r["prompt"], r["sentence"]) for r in answer["results"]] == [
        ("nodule", "There is nodule"),
        ("There is pleural effusion", "There is pleural effusion"),
    ]
    first = answer["results"][0]
    assert first["probability"] == pytest.approx(1 / (1 + np.exp(-(2.0 * first["logit"] - 0.5))), rel=1e-5)
    low, high = first["probability_interval"]
    assert 0 < low < first["probability"] < high < 1
    grid = np.frombuffer(base64.b64decode(first["map"]["values"]), "<f4")
    assert grid.size == np.prod(first["map"]["shape"])
    assert first["map"]["extent"] == [0, 0, 70, 90]
    assert answer["image"]["width"] == 70
    assert answer["threshold"] == 0.4
    assert "Research use only" in answer["notice"]
    assert len(answer["checksum"]) == 64


def test_an_image_is_encoded_once_and_named_by_its_id_afterwards(http: TestClient, model: LocalClient) -> None:
    first = ask(http, png())
    again = ask(http, image_id=first["image"]["image_id"], prompts=["nodule", "pneumonia"])
    assert model.encoded == 1
    # A further finding leaves the others as they were.
    assert again["results"][0]["logit"] == pytest.approx(first["results"][0]["logit"], abs=1e-6)
    preview = http.get(first["image"]["preview"])
    assert preview.headers["content-type"] == "image/png"
    assert preview.headers["cache-control"] == "no-store"


def test_a_film_is_windowed_from_its_stored_values(http: TestClient, film: bytes) -> None:
    image = ask(http, film)["image"]
    grey, stored = image["grey"], read_image(film).array()
    assert (grey["lowest"], grey["highest"]) == (stored.min(), stored.max())
    assert grey["highest"] > 255
    own = http.get(image["preview"])
    again = http.get(image["preview"], params={"level": grey["level"], "width": grey["width"]})
    assert again.content == own.content
    # One grey value apart at the full depth is black and white, which no window of eight bits can show.
    middle = int(np.median(stored))
    steps = http.get(image["preview"], params={"level": middle + 0.5, "width": 1})
    shown = np.asarray(PillowImage.open(io.BytesIO(steps.content)))
    assert shown.shape[0] < stored.shape[0]
    assert shown.mean() / 255 == pytest.approx((stored > middle).mean(), abs=0.01)
    for wrong in ({"level": 3}, {"width": 3}, {"level": 3, "width": 0}, {"level": "nan", "width": 3}):
        refused = http.get(image["preview"], params=wrong)
        assert (refused.status_code, refused.json()["type"]) == (422, "urn:rayzero:problem:invalid-request")


def test_one_film_in_two_encodings_scores_the_same(http: TestClient, film: bytes, film_j2k: bytes) -> None:
    one, other = (ask(http, data, maps="array") for data in (film, film_j2k))
    assert one["image"]["image_id"] != other["image"]["image_id"]
    assert one["results"] == other["results"]


def test_a_prompt_scores_the_same_whatever_stands_beside_it(engine: Engine) -> None:
    image = engine.encode([ModelInput(np.full((1, 128, 128), 0.3, dtype=np.float32))])[0]
    alone = engine.answer(image, ["There is a mass"], maps=True)
    long = "There is a large ill-defined opacity in the left upper lobe with surrounding haze"
    beside = engine.answer(image, [long, "There is a mass"], maps=True)
    assert beside.logits[1] == pytest.approx(alone.logits[0], abs=1e-6)
    assert alone.maps is not None
    assert beside.maps is not None
    assert np.allclose(beside.maps[1], alone.maps[0], atol=1e-5)


def test_a_finding_is_asked_in_every_phrasing_of_the_evaluation(bundle_url: str) -> None:
    bundle = load_bundle(bundle_url)
    ensemble = override(bundle.config, {"evaluation.ensemble": ["There is a {}", "A chest film with {}"]})
    several, plain = (Engine("m", replace(bundle, config=config), 8) for config in (ensemble, bundle.config))
    image = plain.encode([ModelInput(np.full((1, 128, 128), 0.3, dtype=np.float32))])[0]
    asked = several.answer(image, ["There is mass", "Mass, left"], maps=True)
    each = plain.answer(image, ["There is mass", "There is a mass", "A chest film with mass", "Mass, left"], maps=True)
    np.testing.assert_allclose(asked.logits, [each.logits[:3].mean(), each.logits[3]], atol=1e-5)
    assert asked.maps is not None
    assert each.maps is not None
    np.testing.assert_allclose(asked.maps, each.maps[[0, 3]], atol=1e-5)


@pytest.mark.parametrize(
    ("file", "form", "status", "slug"),
    [
        (b"", {}, 422, "empty-file"),
        (b"hello, this is text\n" * 9, {}, 422, "unreadable-file"),
        (png()[:200], {}, 422, "unreadable-file"),
        (b"PK\x03\x04" + bytes(500), {}, 415, "unsupported-image"),
        (b"\x1f\x8b" + bytes(500), {}, 415, "unsupported-image"),
        (bytes(344) + b"n+1\0", {}, 415, "unsupported-image"),
        (bytes(9 * 2**20 + 1), {}, 413, "file-too-large"),
        (bytes(8 * 2**20 + 1), {}, 413, "file-too-large"),
        (png(), {"prompts": ["x" * 10_000]}, 422, "invalid-prompts"),
        (png(), {"prompts": [""]}, 422, "invalid-prompts"),
        (png(), {"prompts": list("abcde")}, 422, "too-many-prompts"),
        (png(), {"model": "radzro"}, 404, "unknown-model"),
        (png(), {"threshold": "1.5"}, 422, "invalid-request"),
        (png(), {"maps": "yes"}, 422, "invalid-request"),
        (png(), {"image_id": "img-1"}, 422, "invalid-request"),
        (None, {}, 422, "invalid-request"),
        (None, {"image_id": "img-1"}, 404, "unknown-image"),
    ],
)
def test_bad_input_is_told_apart(http: TestClient, file: bytes | None, form: dict, status: int, slug: str) -> None:
    answer = ask(http, file, **form)
    assert answer["http_status"] == answer["status"] == status
    assert answer["type"] == f"urn:rayzero:problem:{slug}"
    assert answer["media"] == "application/problem+json"
    assert answer["title"]
    assert answer["detail"]
    assert "name.dcm" not in str(answer)


def test_every_cut_of_a_film_is_a_client_error(http: TestClient, film: bytes) -> None:
    for length in (1, 131, 132, 140, 300, 700, 1200, 5000, len(film) // 2, len(film) - 9000):
        assert ask(http, film[:length])["http_status"] == 422, length


def test_malformed_forms_and_wrong_addresses(http: TestClient) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert http.post("/v1/query", content=b"garbage", headers=headers).status_code == 400
    assert http.post("/v1/query", json={"prompts": ["a"]}).status_code == 422
    assert http.put("/v1/query").json()["type"].endswith("method-not-allowed")
    assert http.get("/nowhere").json()["type"].endswith("not-found")
    assert http.get("/v1/examples/none").json()["type"].endswith("unknown-example")


def test_an_image_beyond_the_pixel_limit(model: LocalClient, reader: Sandbox) -> None:
    service = Service([model], ExampleSet([]), LIMITS.model_copy(update={"pixels": 2000}), reader=reader)
    with TestClient(create_api(service, token=None)) as client:
        assert ask(client, png())["type"].endswith("image-too-large")


def test_a_failure_shows_an_incident_and_nothing_else(
    http: TestClient, model: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    model.failure = RuntimeError("/secret/path")
    with caplog.at_level(logging.INFO, logger="ray.serve"):
        logging.getLogger("ray.serve").addHandler(caplog.handler)
        answer = ask(http, png())
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert answer["http_status"] == 500
    assert "incident" in answer["detail"]
    # The log tells where, not what: that may be a header's value.
    assert "RuntimeError" in caplog.text
    assert "serve/service.py" in caplog.text
    assert "secret" not in str(answer) + caplog.text
    model.failure = Problem(503, "model-unavailable", "Try again.", retry_after_s=2)
    response = http.post("/v1/query", files={"file": png()}, data={"prompts": "nodule"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"


def test_the_token_guards_all_but_the_liveness_check(model: LocalClient) -> None:
    app = create_api(Service([model], ExampleSet([]), LIMITS), token="s3cret")
    with TestClient(app) as client:
        assert client.get("/healthz").status_code == 200
        for path in ("/v1/models", "/openapi.json", "/docs"):
            assert client.get(path).json()["type"].endswith("unauthorized")
        assert client.get("/v1/models", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Bearer s3cre"}).status_code == 401


def test_a_token_may_hold_any_characters(model: LocalClient) -> None:
    with TestClient(create_api(Service([model], ExampleSet([]), LIMITS), token="Schlüssel")) as client:
        sent = "Bearer Schlüssel".encode()
        assert client.get("/v1/models", headers=[(b"Authorization", sent)]).status_code == 200
        assert client.get("/v1/models", headers=[(b"Authorization", sent[:-1] + b"\xff")]).status_code == 401


@pytest.mark.parametrize("length", [b"9" * 5000, b"99999999999", b"-1", b"1e9", b""])
def test_a_length_that_is_none_is_passed_over(http: TestClient, length: bytes) -> None:
    answer = http.post("/v1/query", headers=[(b"Content-Length", length)])
    assert answer.status_code == (413 if length.startswith(b"99") else 422)


@pytest.mark.parametrize("charset", ["undefined", "idna", "zlib", "utf-7", "unicode_escape", "x" * 9000])
def test_a_form_in_any_encoding_is_a_client_error(http: TestClient, charset: str) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="prompts"\r\n\r\n\xff\\ud800..a\r\n--b--\r\n'
    kind = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    for path in ("query", "batch", "retrieve", "dicom"):
        answer = http.post(f"/v1/{path}", content=part, headers=kind)
        assert answer.status_code in (400, 422), answer.text
        assert answer.json()["type"].startswith("urn:rayzero:problem:")


def test_no_path_leads_elsewhere(http: TestClient) -> None:
    asked = ["/v1/models/", "/v1/examples/..%2f..%2fexamples.json/file", "/v1/examples/%00"]
    for path in asked:
        answer = http.get(path, headers={"Host": "elsewhere"}, follow_redirects=False)
        assert answer.status_code == 404, path
        assert "location" not in answer.headers
    files = {"file": ("../../etc/passwd", png())}
    answer = http.post("/v1/query", files=files, data={"prompts": "nodule"})
    assert answer.status_code == 200
    assert "passwd" not in answer.text


def test_those_who_ask_for_readiness_at_once_share_one_inference(engine: Engine) -> None:
    class Counting(LocalClient):
        checks = 0

        async def check(self) -> None:
            self.checks += 1
            await asyncio.sleep(0)

    model = Counting(engine)

    async def ask() -> None:
        service = Service([model], ExampleSet([]), LIMITS)
        await asyncio.gather(*(service.check() for _ in range(9)))
        assert model.checks == 1
        await service.check()

    asyncio.run(ask())
    assert model.checks == 2


def test_maps_that_nobody_waits_for_any_more_are_not_drawn(
    model: LocalClient, reader: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        service = Service([model], ExampleSet([]), LIMITS, reader=reader)
        question = Question(("nodule", "mass", "pneumonia"), forms=frozenset({MapFormat.mask}))
        await service.query(Source(data=png()), question)

    assert drawn_for_who_left(ask, findings, "_located", monkeypatch) == 1


def test_models_and_examples_describe_themselves(http: TestClient) -> None:
    info = http.get("/v1/models").json()["models"][0]
    assert info["vocabulary"] == VOCABULARY
    assert info["default"]
    assert info["card"]["metrics"]
    examples = http.get("/v1/examples").json()["examples"]
    assert [e["id"] for e in examples] == ["film", "noise-1", "noise-2"]
    assert http.get(examples[1]["file"]).content == png(1)
    assert ask(http, image_id=examples[0]["image_id"])["http_status"] == 200
    assert http.get("/readyz").json() == {"status": "ready"}


def test_the_documentation_needs_no_other_host(http: TestClient) -> None:
    page = http.get("/docs").text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert assets
    for asset in assets:
        assert asset.startswith("/"), asset
        assert http.get(asset).status_code == 200
    assert http.get("/openapi.json").json()["paths"]["/v1/query"]


def test_retrieval_ranks_sentences_and_images(http: TestClient) -> None:
    by_image = http.post("/v1/retrieve", files={"file": png(1)}, data={"count": 3}).json()
    logits = [hit["logit"] for hit in by_image["results"]]
    assert by_image["index_size"] == 4
    assert len(logits) == 3
    assert logits == sorted(logits, reverse=True)
    by_text = http.post("/v1/retrieve", data={"text": "nodule"}).json()
    assert {hit["example_ids"][0] for hit in by_text["results"]} == {"film", "noise-1", "noise-2"}
    one = by_text["results"][0]
    example = http.get(f"/v1/examples/{one['example_ids'][0]}").json()
    assert ask(http, image_id=example["image_id"])["results"][0]["logit"] == pytest.approx(one["logit"], abs=1e-5)


def test_an_example_may_not_lie_outside_its_folder(tmp_path) -> None:
    (tmp_path / "examples.json").write_text('[{"id": "x", "file": "../../etc/hostname", "title": "x"}]')
    with pytest.raises(ExamplesError, match="example x"):
        ExampleSet.load(str(tmp_path))


def test_requests_have_an_id_and_a_line_in_the_log_without_what_they_held(
    http: TestClient, film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="ray.serve"):
        logging.getLogger("ray.serve").addHandler(caplog.handler)
        mine = "0123456789abcdef"
        sent = {"X-Request-ID": mine, "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        first = http.post("/v1/query", files={"file": ("Roe^Jane.dcm", film)}, data={"prompts": "mass"}, headers=sent)
        named = http.post("/v1/query", data={"prompts": "mass", "image_id": "img-0"}, headers={"X-Request-ID": "Roe"})
        http.get(first.json()["image"]["preview"])
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert first.headers["x-request-id"] == first.json()["request_id"] == mine
    assert re.fullmatch("[0-9a-f]{32}", named.headers["x-request-id"])
    lines = [json.loads(message) for message in caplog.messages if message.startswith("{")]
    by_id = {line["id"]: line for line in lines}
    assert by_id[mine]["trace"] == "a" * 32
    assert (by_id[mine]["route"], by_id[mine]["status"]) == ("/v1/query", 200)
    assert by_id[mine]["bytes_in"] > len(film)
    assert by_id[named.headers["x-request-id"]]["problem"] == "unknown-image"
    assert lines[-1]["route"] == "/v1/images/{image_id}/preview.png"
    for word in ("Roe", "mass", "img-"):
        assert word not in caplog.text


def test_limits_hold_while_a_body_streams_in(model: LocalClient, reader: Sandbox) -> None:
    limits = Limits(file_bytes=4096, held_bytes=2**20 + 3000, requests_per_minute=4)
    patient, hasty = (
        create_api(Service([model], ExampleSet([]), kept, reader=reader), token=None)
        for kept in (limits, limits.model_copy(update={"body_seconds": 0.3}))
    )

    async def send(chunks: int, size: int, pause: float, client: str, api: ASGIApp = patient) -> tuple[int, str, int]:
        asked, status, out = 0, 0, b""

        async def receive() -> dict:
            nonlocal asked
            await asyncio.sleep(pause)
            asked += 1
            head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' if asked == 1 else b""
            return {"type": "http.request", "body": head + bytes(size), "more_body": asked < chunks}

        async def answer(message: dict) -> None:
            nonlocal status, out
            status = message.get("status", status)
            out += message.get("body", b"")

        headers = [(b"content-type", b"multipart/form-data; boundary=x"), (b"transfer-encoding", b"chunked")]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/v1/query",
            "raw_path": b"/v1/query", "root_path": "", "scheme": "http", "query_string": b"", "headers": headers,
            "client": (client, 1), "server": ("h", 80),
        }  # fmt: skip
        await api(scope, receive, answer)
        return status, json.loads(out)["type"].rpartition(":")[2], asked

    # A body without a stated length is cut off where the limit is, not read to its end.
    status, slug, asked = asyncio.run(send(1000, 2**17, 0.0, "a"))
    assert (status, slug) == (413, "file-too-large")
    assert asked < 12
    assert asyncio.run(send(1000, 10, 0.05, "b", hasty))[:2] == (408, "request-too-slow")

    async def two() -> list[tuple[int, str, int]]:
        return await asyncio.gather(*(send(9, 2**16, 0.01, name) for name in ("c", "d")))

    assert (503, "busy") in [one[:2] for one in asyncio.run(two())]
    slugs = [asyncio.run(send(1, 10, 0.0, "e"))[:2] for _ in range(5)]
    assert slugs[-1] == (429, "rate-limited")
    assert all(slug != "rate-limited" for _, slug in slugs[:4])


def test_a_body_that_trickles_in_takes_no_place_of_those_at_work(engine: Engine, reader: Sandbox) -> None:
    at_work, go_on = asyncio.Event(), asyncio.Event()

    class Waiting(LocalClient):
        async def answer(self, *given: Any, **options: Any) -> Answer | None:
            at_work.set()
            await go_on.wait()
            return await super().answer(*given, **options)

    limits = Limits(requests=1, uploads=2)
    api = create_api(Service([Waiting(engine)], ExampleSet([]), limits, reader=reader), token=None)
    form = httpx.Request("POST", "http://h/v1/query", files={"file": png()}, data={"prompts": "nodule"})
    body = form.read()
    begun = asyncio.Semaphore(0)

    async def trickle(rest: asyncio.Event) -> AsyncIterator[bytes]:
        yield body[:50]
        begun.release()
        await rest.wait()
        yield body[50:]

    async def scenario() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url="http://h") as http:

            async def post(content: bytes | AsyncIterator[bytes]) -> httpx.Response:
                kind = {"Content-Type": form.headers["Content-Type"]}
                return await http.post("/v1/query", content=content, headers=kind)

            rest, end = asyncio.Event(), asyncio.Event()
            slow = asyncio.create_task(post(trickle(rest)))
            await begun.acquire()
            first = asyncio.create_task(post(body))
            await asyncio.wait_for(at_work.wait(), 60)
            rest.set()
            late = await slow
            assert (late.status_code, late.json()["type"]) == (503, "urn:rayzero:problem:busy")
            assert "retry-after" in late.headers
            go_on.set()
            assert (await first).status_code == 200
            # Bodies on their way are counted, too.
            others = [asyncio.create_task(post(trickle(end))) for _ in range(limits.uploads)]
            for _ in others:
                await begun.acquire()
            assert (await post(body)).json()["type"] == "urn:rayzero:problem:busy"
            end.set()
            assert 200 in {one.status_code for one in await asyncio.gather(*others)}
            assert (await post(body)).status_code == 200

    asyncio.run(scenario())


def test_reading_has_a_rate_of_its_own_and_checks_of_health_have_none(model: LocalClient, reader: Sandbox) -> None:
    service = Service([model], ExampleSet([]), Limits(reads_per_minute=2), reader=reader)
    with TestClient(create_api(service, token=None)) as http:
        codes = [http.get(path).status_code for path in ("/v1/models", "/v1/pacs", "/v1/models", "/nowhere")]
        assert codes == [200, 200, 429, 429]
        refused = http.get("/v1/models")
        assert refused.json()["type"] == "urn:rayzero:problem:rate-limited"
        assert 1 <= int(refused.headers["retry-after"]) <= 31
        assert [http.get(path).status_code for path in 3 * ["/healthz", "/readyz"]] == 6 * [200]
        assert ask(http, png())["http_status"] == 200


def test_who_waits_too_long_for_a_reading_process_is_told_to_come_back_and_a_batch_waits_on(engine: Engine) -> None:
    async def scenario(reader: Sandbox) -> None:
        limits = Limits(readers=1, reader_wait_seconds=0.1)
        service = Service([LocalClient(engine)], ExampleSet([]), limits, reader=reader)
        api = create_api(service, token=None)
        service.images.start()
        (process,) = reader.processes()
        os.kill(process, signal.SIGSTOP)
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=api), base_url="http://h") as http:

                def post(path: str, field: str, file: bytes) -> asyncio.Task[httpx.Response]:
                    return asyncio.create_task(http.post(path, files={field: file}, data={"prompts": "nodule"}))

                reading = post("/v1/query", "file", png(1))
                while reader.processes():
                    await asyncio.sleep(0.01)
                gone = post("/v1/query", "file", png(2))
                batch = post("/v1/batch", "files", png(3))
                late = await post("/v1/query", "file", png(4))
                assert (late.status_code, late.json()["type"]) == (503, "urn:rayzero:problem:busy")
                assert late.headers["retry-after"] == "5"
                assert (await gone).status_code == 503
                os.kill(process, signal.SIGCONT)
                assert (await reading).status_code == 200
                assert (await batch).text.splitlines()[-1] == '{"done":1,"failed":0}'
                assert (await post("/v1/query", "file", png(4))).status_code == 200
        finally:
            os.kill(process, signal.SIGCONT)

    with Sandbox(workers=1) as reader:
        asyncio.run(scenario(reader))
