"""Studies fetched from a real Orthanc and results stored back; what a PACS that is away, slow or hostile does."""

from __future__ import annotations

import io
import json
import logging
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import highdicom as hd
import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from pydantic import ValidationError

from rayzero.config import ConfigError
from rayzero.studies.sandbox import Sandbox
from serve.api import create_api
from serve.engine import Engine
from serve.examples import ExampleSet
from serve.pacs import Archive
from serve.service import Service
from serve.settings import Limits, PacsArgs
from tests.ports import free_port
from tests.serve.local import LocalClient
from tests.serve.orthanc import AUTHORIZATION, PLUGIN, PROGRAM, Orthanc

SECRET = "TEST_PACS_AUTHORIZATION"
FORM = {"prompts": ["nodule", "pleural effusion"]}

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, film_j2k: bytes, ct_series: bytes) -> Iterator[Orthanc]:
    if not (PROGRAM.exists() and PLUGIN.exists()):
        pytest.skip("needs Orthanc: infra/install-orthanc")
    running = Orthanc(tmp_path_factory.mktemp("orthanc"))
    running.put(film_j2k)
    with zipfile.ZipFile(io.BytesIO(ct_series)) as archive:
        for name in archive.namelist():
            running.put(archive.read(name))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def engines(bundle_url: str, volume_bundle_url: str) -> list[Engine]:
    urls = {"films": bundle_url, "ct": volume_bundle_url}
    return [Engine.load(name, url, "cpu", cached_prompts=8) for name, url in urls.items()]


@pytest.fixture
def serve(
    engines: list[Engine], reader: Sandbox, examples_folder: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TestClient]:
    monkeypatch.setenv(SECRET, AUTHORIZATION)

    def start(url: str, limits: Limits | None = None, **settings: object) -> TestClient:
        pacs = {"main": PacsArgs.model_validate({"url": url, "authorization": SECRET, "store": True} | settings)}
        models = [LocalClient(engine) for engine in engines]
        examples = ExampleSet.load(examples_folder)
        service = Service(models, examples, limits or Limits(), reader=reader, pacs=pacs)
        return TestClient(create_api(service, token=None))

    return start


@pytest.fixture
def http(serve: Callable[..., TestClient], orthanc: Orthanc) -> TestClient:
    return serve(orthanc.url)


def header(file: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(file), stop_before_pixels=True)


def slices(ct_series: bytes) -> list[pydicom.Dataset]:
    with zipfile.ZipFile(io.BytesIO(ct_series)) as archive:
        return [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in sorted(archive.namelist())]


def at(source: pydicom.Dataset, *, level: str = "study", **form: object) -> dict[str, object]:
    """The fields that name ``source`` down to ``level``."""
    uids = {"study": source.StudyInstanceUID, "series": source.SeriesInstanceUID, "instance": source.SOPInstanceUID}
    names = list(uids)[: list(uids).index(level) + 1]
    return {**FORM, "pacs": "main", **{name: uids[name] for name in names}, **form}


def problem(response: Response) -> tuple[int, str]:
    return response.status_code, response.json()["type"].removeprefix("urn:rayzero:problem:")


@contextmanager
def impostor(answer: Answer) -> Iterator[str]:
    """A PACS that answers as ``answer`` does, at the URL given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Whoever hung up meant to."""

    server = Server(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def part(file: bytes) -> tuple[bytes, dict[str, str]]:
    """A multipart body with one file, and its type."""
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n--b--"
    return body, {"Content_Type": 'multipart/related; type="application/dicom"; boundary=b'}


def test_a_film_in_the_pacs_is_answered_as_when_it_is_sent(http: TestClient, film_j2k: bytes) -> None:
    sent = http.post("/v1/query", files={"file": film_j2k}, data=FORM).json()
    for level in ("study", "series", "instance"):
        fetched = http.post("/v1/query", data=at(header(film_j2k), level=level)).json()
        assert fetched["results"] == sent["results"]
        assert fetched["image"] == sent["image"]
    again = http.post("/v1/query", data={**FORM, "image_id": fetched["image"]["image_id"]})
    assert again.json()["results"] == sent["results"]


def test_a_series_in_the_pacs_is_answered_as_when_it_is_sent(http: TestClient, ct_series: bytes) -> None:
    sent = http.post("/v1/query", files={"file": ct_series}, data={**FORM, "model": "ct"}).json()
    for level in ("study", "series"):
        fetched = http.post("/v1/query", data=at(slices(ct_series)[0], level=level, model="ct"))
        assert fetched.status_code == 200, fetched.text
        assert fetched.json()["results"] == sent["results"]


def batch(http: TestClient, **form: object) -> list[dict]:
    response = http.post("/v1/batch", data=form)
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_a_batch_reads_the_pacs_as_a_query_does(http: TestClient, film_j2k: bytes, ct_series: bytes) -> None:
    film, ct = header(film_j2k), slices(ct_series)[0]
    wanted = http.post("/v1/query", data=at(film)).json()
    places = [film.StudyInstanceUID, "1.2.3", f"{film.StudyInstanceUID}/{film.SeriesInstanceUID}"]
    image_id = wanted["image"]["image_id"]
    *lines, last = batch(http, **FORM, pacs="main", studies=json.dumps(places), image_ids=image_id)
    assert last == {"done": 3, "failed": 1}
    # Ids come before studies.
    by_index = {line["index"]: line for line in lines}
    for index in (0, 1, 3):
        assert by_index[index]["answer"]["results"] == wanted["results"]
    assert by_index[2]["problem"]["type"].endswith("unknown-study")
    series = f"{ct.StudyInstanceUID}/{ct.SeriesInstanceUID}"
    volumes = batch(http, **FORM, pacs="main", studies=[series, f"{series}/{ct.SOPInstanceUID}"], model="ct")
    alone = http.post("/v1/query", data=at(ct, model="ct")).json()
    answered = next(line for line in volumes if line.get("index") == 0)
    assert answered["answer"]["results"] == alone["results"]
    assert volumes[-1] == {"done": 1, "failed": 1}
    refused = [
        ((404, "unknown-pacs"), {"pacs": "other", "studies": "1.2"}),
        ((422, "invalid-request"), {"studies": "1.2"}),
        ((422, "invalid-request"), {"pacs": "main"}),
        *(
            ((422, "invalid-request"), {"pacs": "main", "studies": wrong})
            for wrong in ("../instances", "1.2/", "1/2/3/4", "1" * 65, "1.2 ", "[1]", "[")
        ),
    ]
    for expected, form in refused:
        assert problem(http.post("/v1/batch", data={**FORM, **form})) == expected, form


def test_a_batch_fetches_no_more_at_once_than_may_be_held(
    serve: Callable[..., TestClient], orthanc: Orthanc, film_j2k: bytes
) -> None:
    # All of them together would be too much.
    most = int(1.2 * len(film_j2k))
    http = serve(orthanc.url, Limits(file_bytes=most, held_bytes=2 * most))
    lines = batch(http, **FORM, pacs="main", studies=[header(film_j2k).StudyInstanceUID] * 6)
    assert lines[-1] == {"done": 6, "failed": 0}


def test_a_search_reads_the_pacs_as_a_query_does(http: TestClient, film_j2k: bytes) -> None:
    sent = http.post("/v1/retrieve", files={"file": film_j2k}).json()
    fetched = http.post("/v1/retrieve", data=at(header(film_j2k), level="series"))
    assert fetched.json() == sent
    assert sent["results"]
    assert problem(http.post("/v1/retrieve", data=at(header(film_j2k), text="nodule"))) == (422, "invalid-request")
    assert problem(http.post("/v1/retrieve", data={"pacs": "other", "study": "1.2"})) == (404, "unknown-pacs")
    assert problem(http.post("/v1/retrieve", data={"pacs": "main", "study": "1.2.3"})) == (404, "unknown-study")


def test_a_result_is_stored_in_the_study_and_lies_on_its_source(
    http: TestClient, orthanc: Orthanc, ct_series: bytes
) -> None:
    assert http.get("/v1/pacs").json() == {"pacs": [{"name": "main", "store": True}]}
    source = slices(ct_series)
    form = at(source[0], model="ct", threshold="0.5")
    sent = http.post("/v1/dicom", files={"file": ct_series}, data={**FORM, "model": "ct", "threshold": "0.5"})
    for result, modality in (("seg", "SEG"), ("sr", "SR")):
        stored = http.post("/v1/dicom", data={**form, "result": result, "store": "true"})
        assert stored.status_code == 201, stored.text
        (file,) = orthanc.files(modality)
        made = pydicom.dcmread(io.BytesIO(file))
        told = stored.json()
        assert (made.StudyInstanceUID, made.SeriesInstanceUID) == (told["study"], told["series"])
        assert made.SOPInstanceUID == told["instance"]
        assert made.StudyInstanceUID == source[0].StudyInstanceUID
        assert made.PatientID == source[0].PatientID
    here, there = (
        hd.seg.segread(io.BytesIO(data)).get_pixels_by_source_instance(
            [one.SOPInstanceUID for one in source], assert_missing_frames_are_empty=True
        )
        for data in (sent.content, orthanc.files("SEG")[0])
    )
    np.testing.assert_array_equal(here, there)
    # What was stored is in the study now, and is no image to ask about.
    assert http.post("/v1/query", data=form).status_code == 200


def test_what_is_not_there_or_not_one_image_is_told(http: TestClient, orthanc: Orthanc, film_j2k: bytes) -> None:
    film = header(film_j2k)
    two = pydicom.dcmread(io.BytesIO(film_j2k))
    two.StudyInstanceUID, two.SeriesInstanceUID = "1.2.77", "1.2.77.1"
    for number in (1, 2):
        two.SOPInstanceUID = two.file_meta.MediaStorageSOPInstanceUID = f"1.2.77.1.{number}"
        file = io.BytesIO()
        two.save_as(file)
        orthanc.put(file.getvalue())
    wrong = {
        (404, "unknown-pacs"): [at(film, pacs="http://127.0.0.1:1")],
        (404, "unknown-study"): [
            at(film, study="1.2.3"),
            at(film, level="series", series="1.2.3"),
            at(film, level="instance", instance="1.2.3"),
            at(film, level="instance", study="1.2.3"),
            at(film, model="ct"),
        ],
        (409, "ambiguous-study"): [at(two)],
        (422, "invalid-request"): [
            {**FORM, "pacs": "main"},
            {**FORM, "study": film.StudyInstanceUID},
            at(film, study="../instances"),
            at(film, study="1" * 65),
            at(film, instance="1.2.3"),
            at(film, level="instance", model="ct"),
            at(film, image_id="img-0"),
        ],
    }
    for expected, forms in wrong.items():
        for form in forms:
            response = http.post("/v1/query", data=form)
            assert problem(response) == expected, (form, response.text)
    named = http.post("/v1/query", data=at(two)).json()["detail"]
    assert "1.2.77.1.1" in named
    assert "1.2.77.1.2" in named
    assert problem(http.post("/v1/dicom", data={**FORM, "store": "true"})) == (422, "invalid-request")
    assert problem(http.post("/v1/dicom", data=FORM)) == (422, "invalid-request")


def test_storing_needs_the_operators_word(serve: Callable[..., TestClient], orthanc: Orthanc, film_j2k: bytes) -> None:
    http = serve(orthanc.url, store=False)
    response = http.post("/v1/dicom", data=at(header(film_j2k), store="true"))
    assert problem(response) == (403, "storing-not-allowed")
    assert http.post("/v1/dicom", data=at(header(film_j2k))).headers["content-type"] == "application/dicom"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(file_bytes=100_000, volume_bytes=100_000), (413, "file-too-large")),
        (Limits(held_bytes=100_000), (503, "busy")),
        (Limits(pixels=5000, slices=5), (413, "")),
    ],
)
def test_limits_hold_for_what_a_pacs_sends(
    serve: Callable[..., TestClient],
    orthanc: Orthanc,
    film_j2k: bytes,
    ct_series: bytes,
    limits: Limits,
    expected: tuple[int, str],
) -> None:
    http = serve(orthanc.url, limits)
    for form, slug in (
        (at(header(film_j2k)), "image-too-large"),
        (at(slices(ct_series)[0], model="ct"), "too-many-slices"),
    ):
        response = http.post("/v1/query", data=form)
        assert problem(response) == (expected[0], expected[1] or slug), response.text


def test_a_pacs_that_is_away_hangs_or_refuses_the_server(
    serve: Callable[..., TestClient],
    orthanc: Orthanc,
    film_j2k: bytes,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    form = at(header(film_j2k))
    away = serve(f"http://127.0.0.1:{free_port()}/dicom-web").post("/v1/query", data=form)
    assert problem(away) == (502, "pacs-unavailable")
    with orthanc.hanging():
        slow = serve(orthanc.url, seconds=0.5).post("/v1/query", data=form)
    assert problem(slow) == (504, "pacs-too-slow")
    assert {"retry-after"} <= set(away.headers) & set(slow.headers)
    http = serve(orthanc.url)
    assert http.post("/v1/query", data=form).status_code == 200
    monkeypatch.setenv(SECRET, "Basic d3Jvbmc6d3Jvbmc=")
    refused = serve(orthanc.url).post("/v1/query", data=form)
    assert problem(refused) == (502, "pacs-unavailable")
    assert "credentials" in refused.json()["detail"]
    logged = "\n".join(record.getMessage() for record in caplog.records)
    for private in (AUTHORIZATION, str(form["study"]), str(header(film_j2k).PatientID), "d3Jvbmc6d3Jvbmc="):
        assert private not in logged
    assert "pacs main" in logged


def test_a_hostile_pacs_gets_nowhere(serve: Callable[..., TestClient], film_j2k: bytes, ct_series: bytes) -> None:
    film = header(film_j2k)
    form = at(film, level="instance")
    asked: list[str] = []

    def redirect(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        reply(handler, 302, Location="/elsewhere")

    def another(handler: BaseHTTPRequestHandler) -> None:
        file = io.BytesIO()
        slices(ct_series)[0].save_as(file)
        body, headers = part(file.getvalue())
        reply(handler, 200, body, **headers)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", 'multipart/related; type="application/dicom"; boundary=b')
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(100_000))

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", 'multipart/related; type="application/dicom"; boundary=b')
        handler.end_headers()
        while True:
            handler.wfile.write(b"-")
            time.sleep(0.05)

    def nonsense(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, 200, b"<html>", Content_Type="text/html")

    def empty(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, 200, b"\r\n--b--", **part(b"")[1])

    def damaged(handler: BaseHTTPRequestHandler) -> None:
        body, headers = part(film_j2k[:20_000])
        reply(handler, 200, body, **headers)

    expected: dict[Answer, tuple[int, str]] = {
        redirect: (502, "pacs-unavailable"),
        another: (502, "pacs-unavailable"),
        endless: (413, "file-too-large"),
        drip: (504, "pacs-too-slow"),
        nonsense: (502, "pacs-unavailable"),
        empty: (404, "unknown-study"),
        damaged: (422, "unreadable-file"),
    }
    for answer, told in expected.items():
        with impostor(answer) as url:
            http = serve(url, Limits(file_bytes=5 * 2**20), seconds=1.5 if answer is drip else 30)
            response = http.post("/v1/query", data=form)
            assert problem(response) == told, (answer.__name__, response.text)
    assert len(asked) == 1
    for document in (
        b'[{"00080060": {"Value": ["DX"]}, "0020000E": 3}]',
        b'[{"00080060": {"Value": ["DX"]}, "0020000E": {"Value": ["../x"]}}]',
        b"[" * 10**5,
    ):
        with impostor(lambda handler, found=document: reply(handler, 200, found)) as url:  # type: ignore[misc]
            assert problem(serve(url).post("/v1/query", data=at(film))) == (502, "pacs-unavailable")


def test_a_result_that_the_pacs_refuses_is_not_taken_as_stored(
    serve: Callable[..., TestClient], film_j2k: bytes
) -> None:
    refusal = json.dumps({"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}]}}).encode()
    refusals = [(202, refusal), (409, b"")]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "GET":
            sent, headers = part(film_j2k)
            reply(handler, 200, sent, **headers)
        else:
            reply(handler, *refusals.pop(), Content_Type="application/dicom+json")

    with impostor(answer) as url:
        http = serve(url)
        while refusals:
            response = http.post("/v1/dicom", data=at(header(film_j2k), level="instance", store="true"))
            assert problem(response) == (502, "not-stored"), response.text


def test_a_configuration_that_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("ftp://pacs/dicom-web", "http://user:password@pacs/dicom-web", "pacs", "http://pacs/?a=1"):
        with pytest.raises(ValidationError):
            PacsArgs(url=url)
    monkeypatch.delenv(SECRET, raising=False)
    with pytest.raises(ConfigError, match=SECRET):
        Archive("main", PacsArgs(url="https://pacs", authorization=SECRET), Limits())
    with pytest.raises(ConfigError, match="certificates"):
        Archive("main", PacsArgs(url="https://pacs", certificates="/nowhere.pem"), Limits())
