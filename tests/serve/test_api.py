"""The HTTP interface in one process: the real routes and a real, untrained model; no Ray."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient

from rayzero.alignment.base import ImageFeatures
from rayzero.bundle import load_bundle
from rayzero.config import override
from serve.api import create_api
from serve.engine import Answer, Description, Engine
from serve.examples import ExamplesError, ExampleSet
from serve.problems import Problem
from serve.service import Service
from serve.settings import Limits
from tests.serve.conftest import VOCABULARY, png

LIMITS = Limits(file_bytes=8 * 2**20, prompts=4, prompt_chars=64, requests=1)


class LocalClient:
    """A model in this process that counts how many images it encoded."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.encoded = 0
        self.failure: Exception | None = None
        self._images: dict[str, ImageFeatures] = {}

    @property
    def description(self) -> Description:
        return self.engine.description

    async def answer(
        self, image_id: str, pixels: np.ndarray | None, prompts: Sequence[str], *, maps: bool
    ) -> Answer | None:
        if self.failure is not None:
            raise self.failure
        if image_id not in self._images:
            if pixels is None:
                return None
            self.encoded += 1
            self._images[image_id] = self.engine.encode([pixels])[0]
        return self.engine.answer(self._images[image_id], prompts, maps=maps)

    async def check(self) -> None:
        self.engine.check()


@pytest.fixture(scope="module")
def engine(bundle_url: str) -> Engine:
    return Engine.load("radzero", bundle_url, "cpu", cached_prompts=8)


@pytest.fixture
def model(engine: Engine) -> LocalClient:
    return LocalClient(engine)


@pytest.fixture
def http(model: LocalClient, examples_folder: str) -> Iterator[TestClient]:
    service = Service([model], ExampleSet.load(examples_folder), LIMITS)
    with TestClient(create_api(service, token=None), raise_server_exceptions=False) as client:
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


def test_one_film_in_two_encodings_scores_the_same(http: TestClient, film: bytes, film_j2k: bytes) -> None:
    one, other = (ask(http, data, maps="array") for data in (film, film_j2k))
    assert one["image"]["image_id"] != other["image"]["image_id"]
    assert one["results"] == other["results"]


def test_a_prompt_scores_the_same_whatever_stands_beside_it(engine: Engine) -> None:
    image = engine.encode([np.full((1, 128, 128), 0.3, dtype=np.float32)])[0]
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
    several, plain = (Engine("m", replace(bundle, config=config), "", 8) for config in (ensemble, bundle.config))
    image = plain.encode([np.full((1, 128, 128), 0.3, dtype=np.float32)])[0]
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


def test_an_image_beyond_the_pixel_limit(model: LocalClient) -> None:
    service = Service([model], ExampleSet([]), LIMITS.model_copy(update={"pixels": 2000}))
    with TestClient(create_api(service, token=None)) as client:
        assert ask(client, png())["type"].endswith("image-too-large")


def test_a_failure_shows_an_incident_and_nothing_else(http: TestClient, model: LocalClient) -> None:
    model.failure = RuntimeError("/secret/path")
    answer = ask(http, png())
    assert answer["http_status"] == 500
    assert "incident" in answer["detail"]
    assert "secret" not in str(answer)
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
