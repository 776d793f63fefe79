"""Studies of several films: companions by file and by id, exactly as evaluation reads them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from rayzero.bundle import load_bundle
from rayzero.studies.files import read_image
from rayzero.studies.sandbox import Sandbox
from rayzero.studies.study import Study
from serve.api import create_api
from serve.engine import Engine
from serve.examples import ExampleSet
from serve.service import Service
from serve.settings import Limits
from tests.serve.conftest import png
from tests.serve.local import LocalClient


@pytest.fixture(scope="module")
def model(study_bundle_url: str) -> LocalClient:
    return LocalClient(Engine.load("alta", study_bundle_url, "cpu", cached_prompts=8))


@pytest.fixture(scope="module")
def http(model: LocalClient, reader: Sandbox) -> Iterator[TestClient]:
    service = Service([model], ExampleSet([]), Limits(), reader=reader)
    with TestClient(create_api(service, token=None)) as client:
        yield client


def ask(http: TestClient, **form: object) -> dict:
    files = {name: ("x", value) for name, value in form.items() if isinstance(value, bytes)}
    fields = {name: value for name, value in form.items() if not isinstance(value, bytes)}
    response = http.post("/v1/query", files=files or None, data={"prompts": "nodule", **fields})
    return {**response.json(), "http_status": response.status_code}


def test_companions_count_as_they_do_in_evaluation(http: TestClient, model: LocalClient, study_bundle_url: str) -> None:
    def film(seed: int, view: str):
        return read_image(png(seed)).__class__(**{**vars(read_image(png(seed))), "view": view})

    bundle = load_bundle(study_bundle_url)
    prior = Study(study_id="p", patient_id="x", corpus="c", split="test", images=(film(3, "frontal"),))
    study = Study(
        study_id="s",
        patient_id="x",
        corpus="c",
        split="test",
        prior_study_id="p",
        images=(film(1, "frontal"), film(2, "lateral")),
    )
    pixels, present, _ = bundle.prepare_study(study, study.images[0], lambda _: prior)
    expected = bundle.score(bundle.encode_images([pixels], [present]), bundle.encode_prompts(["There is nodule"]))
    whole = ask(http, file=png(1), lateral=png(2), prior_frontal=png(3))
    alone = ask(http, file=png(1))
    assert alone["results"][0]["probability_interval"] is None, "a bundle without calibration has none"
    assert whole["results"][0]["logit"] == pytest.approx(float(expected[0, 0]), abs=1e-5)
    assert alone["results"][0]["logit"] != pytest.approx(float(expected[0, 0]), abs=1e-4)
    assert set(whole["companions"]) == {"lateral", "prior_frontal"}
    encoded = model.encoded
    ids = {f"{name}_id": one["image_id"] for name, one in whole["companions"].items()}
    again = ask(http, image_id=whole["image"]["image_id"], **ids)
    assert again["results"] == whole["results"]
    assert model.encoded == encoded


def test_a_companion_that_is_not_read_or_not_an_image_is_refused(http: TestClient) -> None:
    refused = ask(http, file=png(1), prior_lateral=png(2))
    assert (refused["http_status"], refused["field"]) == (422, "prior_lateral")
    assert refused["type"].endswith("unsupported-companion")
    broken = ask(http, file=png(1), lateral=png(2)[:60])
    assert (broken["type"], broken["field"]) == ("urn:rayzero:problem:unreadable-file", "lateral")
    unknown = ask(http, file=png(1), lateral_id="img-0")
    assert (unknown["http_status"], unknown["field"]) == (404, "lateral_id")
    both = ask(http, file=png(1), lateral=png(2), lateral_id="img-0")
    assert (both["http_status"], both["field"]) == (422, "lateral")
    assert http.get("/v1/models").json()["models"][0]["companions"] == ["lateral", "prior_frontal"]
