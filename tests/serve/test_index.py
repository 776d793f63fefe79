"""The index job on a real lake, and its searches against scoring everything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from jobs import index as job
from rayzero.bundle import fingerprint, load_bundle
from rayzero.index import SearchIndexError, load_index
from rayzero.studies.sandbox import Sandbox
from serve.api import create_api
from serve.engine import Engine
from serve.examples import ExampleSet
from serve.schemas import IndexInfo
from serve.service import Service
from serve.settings import Limits
from tests.serve.conftest import png
from tests.serve.local import LocalClient
from tests.toys import toy_lake


@pytest.fixture(scope="module")
def built(bundle_url: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("index")
    toy_lake(str(folder / "lake"), train=12, validation=2, test=2)
    arguments = ["--bundle", bundle_url, "--lake", str(folder / "lake"), "--batch-size", "5"]
    job.run([*arguments, "--out", str(folder / "index"), "--splits", "train", "test"])
    return str(folder / "lake"), str(folder / "index")


@pytest.fixture(scope="module")
def http(built: tuple[str, str], bundle_url: str, reader: Sandbox):
    model = LocalClient(Engine.load("radzero", bundle_url, "cpu", cached_prompts=64))
    model.indexes = {"toys": load_index(built[1], fingerprint(bundle_url))}
    info = IndexInfo(name="toys", model="radzero", sentences=4, images=14)
    service = Service([model], ExampleSet([]), Limits(), reader=reader, indexes=[info])
    with TestClient(create_api(service, token=None)) as client:
        yield client


def test_images_come_in_the_order_of_the_systems_own_scores(
    http: TestClient,
    built: tuple[str, str],
    bundle_url: str,
) -> None:
    from rayzero.studies.lake import open_lake

    bundle = load_bundle(bundle_url)
    text = bundle.encode_prompts(["There is lung nodule"])
    expected = {}
    for study in open_lake(built[0]).read(splits=["train", "test"]):
        pixels, _ = bundle.prepare(study.images[0])
        expected[study.images[0].image_id] = float(bundle.score(bundle.encode_images([pixels]), text)[0, 0])
    answer = http.post("/v1/retrieve", data={"text": "lung nodule", "index": "toys", "count": 14}).json()
    assert answer["index_size"] == len(answer["results"]) == 14
    for hit in answer["results"]:
        # Features are kept in half precision.
        assert hit["logit"] == pytest.approx(expected[hit["image_id"]], abs=0.01)
        assert hit["image_id"].startswith(hit["study_ids"][0])
    assert [hit["rank"] for hit in answer["results"]] == list(range(1, 15))
    logits = [hit["logit"] for hit in answer["results"]]
    assert logits == sorted(logits, reverse=True)


def test_sentences_come_with_the_studies_that_say_them(http: TestClient) -> None:
    answer = http.post("/v1/retrieve", files={"file": png(1)}, data={"index": "toys", "count": 3}).json()
    asked = http.post(
        "/v1/query", files={"file": png(1)}, data={"prompts": [hit["sentence"] for hit in answer["results"]]}
    ).json()
    np.testing.assert_allclose(
        [hit["logit"] for hit in answer["results"]], [one["logit"] for one in asked["results"]], atol=1e-5
    )
    assert answer["index_size"] == 4
    assert all(hit["study_ids"] for hit in answer["results"])
    assert http.get("/v1/indexes").json()["indexes"][0]["images"] == 14


def test_wrong_names_are_told(http: TestClient) -> None:
    def slug(**form: str) -> str:
        return http.post("/v1/retrieve", data={"text": "nodule", **form}).json()["type"].rpartition(":")[2]

    assert slug(index="toy") == "unknown-index"
    assert slug(index="toys", model="other") == "invalid-request"
    assert slug() == "no-index"


def test_an_index_belongs_to_its_bundle_and_is_checked(
    built: tuple[str, str],
    bundle_url: str,
    volume_bundle_url: str,
    tmp_path: Path,
) -> None:
    card = json.loads(Path(built[1], "index.json").read_text())
    assert (card["sentences"], card["images"]) == (4, 14)
    # A hundred are proposed, and there are fewer.
    assert card["recall"] == {"images": 1.0, "sentences": 1.0}
    checksum = fingerprint(bundle_url)
    with pytest.raises(SearchIndexError, match="built with another bundle"):
        load_index(built[1], fingerprint(volume_bundle_url))
    with pytest.raises(SearchIndexError, match=r"jobs\.index"):
        load_index(str(tmp_path), checksum)
    changed = Path(built[1], "pooled.npy")
    whole = changed.read_bytes()
    changed.write_bytes(whole[:-1] + b"\0")
    with pytest.raises(SearchIndexError, match=r"pooled\.npy"):
        load_index(built[1], checksum)
    changed.write_bytes(whole)
