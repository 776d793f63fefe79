"""Malformed requests: from the OpenAPI document, and with damaged files. Never a 5xx, and right ones still answered.

``python -m tests.benchmarks.malformed`` sends ten thousand of them to a real server and watches its processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rayzero.studies.sandbox import Sandbox
from serve.api import create_api
from serve.engine import Engine
from serve.examples import ExampleSet
from serve.service import Service
from serve.settings import Limits
from tests.serve.conftest import png
from tests.serve.local import LocalClient
from tests.serve.malformed import damaged_files, is_problem, is_sound, send_what_the_document_allows


@pytest.fixture(scope="module")
def http(bundle_url: str, volume_bundle_url: str, examples_folder: str, reader: Sandbox) -> Iterator[TestClient]:
    urls = {"films": bundle_url, "ct": volume_bundle_url}
    models = [LocalClient(Engine.load(name, url, "cpu", cached_prompts=64)) for name, url in urls.items()]
    limits = Limits(prompts=20, file_bytes=2**20, volume_bytes=2**20, batch_files=3)
    service = Service(models, ExampleSet.load(examples_folder), limits, reader=reader)
    with TestClient(create_api(service, token=None), raise_server_exceptions=False) as client:
        yield client


def test_whatever_the_openapi_document_allows_is_answered(http: TestClient) -> None:
    def send(arguments: dict[str, Any]) -> None:
        response = http.request(**arguments)
        assert response.status_code < 500, (arguments["url"], response.text)
        assert is_sound(response), (arguments["url"], response.text)

    send_what_the_document_allows(http.get("/openapi.json").json(), send, count=150, url="http://testserver")
    assert http.post("/v1/query", files={"file": png()}, data={"prompts": "nodule"}).status_code == 200


def test_damaged_files_are_refused_and_right_ones_answered_in_between(http: TestClient, ct_nifti: bytes) -> None:
    right = {"films": png(), "ct": ct_nifti}
    before = {
        model: http.post("/v1/query", files={"file": file}, data={"prompts": "nodule", "model": model}).json()
        for model, file in right.items()
    }
    codes = set()
    for number, (model, data) in enumerate(damaged_files(160, seed=3)):
        response = http.post("/v1/query", files={"file": data}, data={"prompts": "nodule", "model": model})
        codes.add(response.status_code)
        assert response.status_code < 500, response.text
        if response.status_code != 200:
            assert is_problem(response.headers["content-type"], response.json())
        if number % 40 == 0:
            for name, file in right.items():
                form = {"prompts": "nodule", "model": name}
                again = http.post("/v1/query", files={"file": file}, data=form).json()
                assert again["results"] == before[name]["results"]
    assert 422 in codes
