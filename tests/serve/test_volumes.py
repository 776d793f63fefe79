"""CT through the HTTP interface: scores as the bundle gives them, places in voxels, slices to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image as PillowImage

from rayzero.bundle import load_bundle
from rayzero.phantom import CtVolume
from rayzero.studies.sandbox import Sandbox
from rayzero.studies.study import Mask
from rayzero.studies.volumes import read_volume
from serve.api import create_api
from serve.engine import Engine
from serve.examples import ExampleSet
from serve.service import Service
from serve.settings import Limits
from tests.serve.conftest import png
from tests.serve.local import LocalClient

PROMPTS = ["nodule", "There is no effusion"]


@pytest.fixture(scope="module")
def http(bundle_url: str, volume_bundle_url: str, reader: Sandbox) -> Iterator[TestClient]:
    urls = {"ct": volume_bundle_url, "films": bundle_url}
    models = [LocalClient(Engine.load(name, url, "cpu", cached_prompts=8)) for name, url in urls.items()]
    service = Service(models, ExampleSet([]), Limits(volume_bytes=2**20, slices=200), reader=reader)
    with TestClient(create_api(service, token=None)) as client:
        yield client


def ask(http: TestClient, file: bytes | None = None, **form: object) -> dict:
    files = None if file is None else {"file": ("name.nii.gz", file)}
    response = http.post("/v1/query", files=files, data={"prompts": PROMPTS, **form})
    assert "name.nii" not in response.text
    return {**response.json(), "http_status": response.status_code}


def test_nifti_and_series_of_one_scan_score_as_the_bundle_does(
    http: TestClient, volume_bundle_url: str, ct: CtVolume, ct_nifti: bytes, ct_series: bytes
) -> None:
    bundle = load_bundle(volume_bundle_url)
    pixels, geometry = bundle.prepare(read_volume(ct_nifti))
    features = bundle.encode_images([pixels])
    text = bundle.encode_prompts(["There is nodule", "There is no effusion"])
    logits, grids = bundle.score(features, text)[0], bundle.similarity_map(features, text)[0]
    for file in (ct_nifti, ct_series):
        answer = ask(http, file, maps="array")
        assert [one["logit"] for one in answer["results"]] == pytest.approx(logits, abs=1e-5)
        image = answer["image"]
        assert (image["kind"], image["view"]) == ("volume", "volume")
        assert (image["slices"], image["height"], image["width"]) == ct.hu.shape
        assert image["spacing_mm"] == pytest.approx([8.0] * 3)
        for one, grid in zip(answer["results"], grids, strict=True):
            values = np.frombuffer(base64.b64decode(one["map"]["values"]), "<f4").reshape(one["map"]["shape"])
            np.testing.assert_allclose(values, grid, atol=1e-4)
            restored = geometry.restore(grid)
            peak = one["peak"]
            # Measured on a canvas of at most 96 pixels a side, which this scan is within.
            assert restored[peak["z"], peak["y"], peak["x"]] == pytest.approx(restored.max(), abs=1e-4)
            np.testing.assert_allclose(one["slice_peaks"], 1 / (1 + np.exp(-restored.max(axis=(1, 2)))), atol=1e-3)


def test_masks_boxes_contours_and_pictures_agree(http: TestClient, ct: CtVolume, ct_nifti: bytes) -> None:
    (first, _) = ask(http, ct_nifti, maps=["mask", "png", "contour", "array"], threshold="0.5")["results"]
    grid = np.frombuffer(base64.b64decode(first["map"]["values"]), "<f4")
    level = float(1 / (1 + np.exp(-np.quantile(grid, 0.9))))
    (one, _) = ask(http, ct_nifti, maps=["mask", "png", "contour"], threshold=str(level))["results"]
    run = one["map"]["mask"]
    mask = Mask(size=tuple(run["size"]), counts=tuple(run["counts"])).array()
    assert mask.shape == ct.hu.shape
    assert mask.mean() == pytest.approx(one["area_fraction"], abs=1e-6)
    peak, (x0, y0, x1, y1), (z0, z1) = one["peak"], one["box"], one["slices"]
    assert mask[peak["z"], peak["y"], peak["x"]]
    inside = mask[z0:z1, y0:y1, x0:x1]
    assert all(inside.any(axis=axes)[[0, -1]].all() for axes in ((1, 2), (0, 2), (0, 1)))
    assert one["map"]["slice"] == peak["z"]
    picture = np.asarray(PillowImage.open(io.BytesIO(base64.b64decode(one["map"]["png"]))))
    assert picture.shape == ct.hu.shape[1:]
    clear = np.abs(picture / 255 - level) > 0.01
    np.testing.assert_array_equal((picture / 255 >= level)[clear], mask[peak["z"]][clear])
    lines = one["map"]["contours"]
    assert lines
    assert all(line[0] == line[-1] for line in lines)
    area = sum(_area(np.array(line)) for line in lines)
    assert area == pytest.approx(mask[peak["z"]].sum(), rel=0.2, abs=6)
    other = ask(http, ct_nifti, maps="png", slice="3")["results"][0]
    assert other["map"]["slice"] == 3


def _area(line: np.ndarray) -> float:
    x, y = line[:-1].T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def test_slices_are_drawn_with_the_front_up(http: TestClient, ct: CtVolume, ct_nifti: bytes) -> None:
    image = ask(http, ct_nifti)["image"]
    z = len(ct.hu) // 2
    assert http.get(image["preview"]).content == http.get(image["slice_preview"].format(z=z)).content
    response = http.get(image["slice_preview"].format(z=z), params={"window": "bone"})
    picture = np.asarray(PillowImage.open(io.BytesIO(response.content)), dtype=float)
    expected = np.clip((read_volume(ct_nifti).array()[z] + 500.0) / 1800, 0, 1) * 255
    np.testing.assert_allclose(picture, expected, atol=1)
    # The spine is at the back, which is the lower half.
    assert picture[len(picture) // 2 :].max() > picture[: len(picture) // 3].max()
    assert http.get(image["slice_preview"].format(z=999)).status_code == 404
    assert image["grey"] is None
    assert http.get(image["preview"], params={"level": 40, "width": 400}).status_code == 422
    assert http.get(image["slice_preview"].format(z=z), params={"window": "soft"}).status_code == 422


@pytest.mark.parametrize(("plane", "axis"), [("coronal", 1), ("sagittal", 2)])
def test_upright_planes_are_drawn_with_the_head_up(
    http: TestClient, ct: CtVolume, ct_nifti: bytes, plane: str, axis: int
) -> None:
    image = ask(http, ct_nifti)["image"]
    index = ct.hu.shape[axis] // 3
    answer = http.get(image["slice_preview"].format(z=index), params={"plane": plane, "window": "bone"})
    picture = np.asarray(PillowImage.open(io.BytesIO(answer.content)), dtype=float)
    cut = np.take(read_volume(ct_nifti).array(), index, axis)[::-1]
    np.testing.assert_allclose(picture, np.clip((cut + 500.0) / 1800, 0, 1) * 255, atol=1)
    beyond = image["slice_preview"].format(z=ct.hu.shape[axis])
    assert http.get(beyond, params={"plane": plane}).status_code == 404


@pytest.mark.parametrize(
    ("make", "form", "status", "slug"),
    [
        (lambda nifti, _: png(), {}, 415, "unsupported-image"),
        (lambda nifti, _: nifti, {"model": "films"}, 415, "unsupported-image"),
        (lambda nifti, _: nifti[:5000], {}, 422, "unreadable-file"),
        (lambda _, series: series[:5000], {}, 422, "unreadable-file"),
        (lambda nifti, _: nifti, {"slice": "500", "maps": "png"}, 422, "invalid-request"),
        (lambda nifti, _: nifti, {"slice": "-1", "maps": "png"}, 422, "invalid-request"),
        (lambda nifti, _: nifti + bytes(2**20), {}, 413, "file-too-large"),
    ],
)
def test_what_is_no_volume_is_told_apart(
    http: TestClient, ct_nifti: bytes, ct_series: bytes, make, form: dict, status: int, slug: str
) -> None:
    answer = ask(http, make(ct_nifti, ct_series), **form)
    assert (answer["http_status"], answer["type"]) == (status, f"urn:rayzero:problem:{slug}")


def test_a_film_that_was_read_is_no_volume_either(http: TestClient) -> None:
    image_id = ask(http, png(), model="films")["image"]["image_id"]
    assert ask(http, image_id=image_id)["type"].endswith("unsupported-image")


def test_names_in_an_archive_stay_out_of_messages(http: TestClient, ct_series: bytes) -> None:
    broken = ct_series.replace(b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.5.1.4.1.1.4")
    answer = ask(http, broken)
    assert answer["type"].endswith("unreadable-file")
    assert "DOE" not in str(answer)


def test_models_say_what_they_read(http: TestClient) -> None:
    ct, films = http.get("/v1/models").json()["models"]
    assert (ct["input"], ct["calibrated"], films["input"], films["calibrated"]) == ("volume", False, "radiograph", True)
