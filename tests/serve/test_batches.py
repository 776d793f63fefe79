"""Many findings and many images in one request."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient

from rayzero.studies.sandbox import Sandbox
from serve.api import create_api
from serve.engine import Engine
from serve.examples import ExampleSet
from serve.live import Live, LiveSettings
from serve.service import Service
from serve.settings import Limits
from tests.serve.conftest import VOCABULARY, png
from tests.serve.local import LocalClient

LIVE = Live(LiveSettings(prompt_sets={"effusions": ["pleural effusion", "pericardial effusion"]}))


@pytest.fixture(scope="module")
def model(bundle_url: str) -> LocalClient:
    return LocalClient(Engine.load("radzero", bundle_url, "cpu", cached_prompts=512))


@pytest.fixture(scope="module")
def http(model: LocalClient, examples_folder: str, reader: Sandbox) -> Iterator[TestClient]:
    limits = Limits(batch_files=5, batch_bytes=2**20)
    service = Service([model], ExampleSet.load(examples_folder), limits, live=LIVE, reader=reader)
    with TestClient(create_api(service, token=None)) as client:
        yield client


def lines(http: TestClient, **content: object) -> list[dict]:
    response = http.post("/v1/batch", **content)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_each_image_of_a_batch_answers_as_alone_or_says_why_not(http: TestClient) -> None:
    example = http.get("/v1/examples").json()["examples"][0]["image_id"]
    files = [("files", ("a.png", png(1))), ("files", ("b.png", png(2)[:99])), ("files", ("c.png", png(3)))]
    form = {"prompts": ["nodule", "mass"], "image_ids": f'["{example}", "img-0"]', "maps": "array"}
    *answers, last = lines(http, files=files, data=form)
    assert last == {"done": 3, "failed": 2}
    by_index = {line["index"]: line for line in answers}
    assert sorted(by_index) == [0, 1, 2, 3, 4]
    assert by_index[1]["problem"]["type"].endswith("unreadable-file")
    assert by_index[4]["problem"]["type"].endswith("unknown-image")
    alone = http.post("/v1/query", files={"file": png(3)}, data={"prompts": ["nodule", "mass"], "maps": "array"})
    assert by_index[2]["answer"]["results"] == alone.json()["results"]
    assert by_index[2]["answer"].keys() == alone.json().keys()
    assert "b.png" not in str(answers)


@pytest.mark.parametrize(
    ("count", "form", "status", "slug"),
    [
        (0, {"prompts": "nodule"}, 422, "invalid-request"),
        (6, {"prompts": "nodule"}, 422, "too-many-files"),
        (1, {"prompts": ""}, 422, "invalid-prompts"),
        (1, {}, 422, "invalid-prompts"),
        (1, {"prompts": "nodule", "model": "x"}, 404, "unknown-model"),
        (1, {"prompts": "nodule", "image_ids": "[1]"}, 422, "invalid-request"),
    ],
)
def test_what_no_image_can_be_asked_is_refused_at_once(
    http: TestClient, count: int, form: dict, status: int, slug: str
) -> None:
    files = [("files", ("x", png(seed))) for seed in range(count)]
    response = http.post("/v1/batch", files=files or None, data=form)
    assert (response.status_code, response.json()["type"]) == (status, f"urn:rayzero:problem:{slug}")


def test_a_batch_has_its_own_limit_of_bytes(http: TestClient) -> None:
    files = [("files", ("x", bytes(2**20))), ("files", ("x", bytes(2**21)))]
    response = http.post("/v1/batch", files=files, data={"prompts": "nodule"})
    assert (response.status_code, response.json()["type"]) == (413, "urn:rayzero:problem:file-too-large")


def test_ranking_keeps_the_likeliest_and_their_maps_alone(http: TestClient, model: LocalClient) -> None:
    findings = [f"finding number {number}" for number in range(150)]
    form = {"prompts": json.dumps(findings), "maps": "array"}
    whole = http.post("/v1/query", files={"file": png(1)}, data=form).json()["results"]
    best = http.post("/v1/query", files={"file": png(1)}, data={**form, "top": "5"}).json()["results"]
    assert [one["prompt"] for one in whole] == findings
    assert sorted(one["rank"] for one in whole) == list(range(1, 151))
    for one, same in zip(best, sorted(whole, key=lambda one: one["rank"]), strict=False):
        assert all(one[name] == same[name] for name in ("prompt", "rank", "logit", "probability"))
        values, others = (np.frombuffer(base64.b64decode(x["map"]["values"]), "<f4") for x in (one, same))
        np.testing.assert_allclose(values, others, atol=1e-5)
    assert len(best) == 5
    assert [one["logit"] for one in best] == sorted((one["logit"] for one in whole), reverse=True)[:5]
    encoded = model.sentences_encoded
    http.post("/v1/query", files={"file": png(2)}, data=form)
    assert model.sentences_encoded == encoded


def test_lists_of_findings_kept_by_the_server(http: TestClient) -> None:
    def ask(**form: str) -> dict:
        return http.post("/v1/query", files={"file": png(1)}, data=form).json()

    assert [one["prompt"] for one in ask(prompt_set="vocabulary")["results"]] == VOCABULARY
    assert [one["prompt"] for one in ask(prompt_set="effusions")["results"]] == LIVE.prompt_sets["effusions"]
    assert ask(prompt_set="efusions")["type"].endswith("unknown-prompt-set")
    assert ask(prompt_set="effusions", prompts="nodule")["field"] == "prompt_set"
    LIVE.replace(LiveSettings(prompt_sets=LIVE.prompt_sets, thresholds={"radzero": 0.25}))
    assert ask(prompts="nodule")["threshold"] == 0.25
