"""A reader's hands on the real page: headless Chromium, the page over HTTP, and a real (untrained) server."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from serve.api import create_api
from serve.engine import Engine
from serve.examples import ExampleSet
from serve.service import Service
from serve.settings import Limits
from tests.serve.conftest import bundle_url, examples_folder, film, png  # noqa: F401
from tests.serve.local import LocalClient
from tests.serve.test_serve import free_port
from ui import app

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


class Host:
    """The server in a thread, so that a test can take it away and bring it back."""

    def __init__(self, bundle: str, examples: str) -> None:
        service = Service([LocalClient(Engine.load("radzero", bundle, "cpu", 64))], ExampleSet.load(examples), Limits())
        self.queries = 0
        api = create_api(service, token=None)

        async def counted(scope, receive, send):
            self.queries += scope.get("path") == "/v1/query"
            await api(scope, receive, send)

        self._app = counted
        self.port = free_port()
        self.start()

    def start(self) -> None:
        self._server = uvicorn.Server(uvicorn.Config(self._app, port=self.port, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(timeout=20)


@pytest.fixture(scope="module")
def host(bundle_url: str, examples_folder: str) -> Iterator[Host]:  # noqa: F811
    host = Host(bundle_url, examples_folder)
    yield host
    host.stop()


@pytest.fixture(scope="module")
def url(host: Host) -> Iterator[str]:
    yield app.launch(f"http://127.0.0.1:{host.port}", port=free_port(), block=False)
    gr.close_all()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs a browser at {CHROMIUM}: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    expect(page.locator("#examples button")).to_have_count(3, timeout=30_000)
    yield page
    outside = [u for u in requested if not u.startswith((url, "data:", "blob:"))]
    assert not outside, "the page fetches nothing from elsewhere"
    context.close()


def _ask_example(page: Page, index: int = 1) -> None:
    page.locator("#examples button").nth(index).click()
    expect(page.locator("#overlay img")).to_be_visible(timeout=30_000)
    expect(page.locator("#bars li").first).to_be_visible()


def test_an_example_shows_bars_and_an_overlay(page: Page) -> None:
    _ask_example(page)
    expect(page.locator("#bars li")).to_have_count(3)
    values = [int(m.get_attribute("aria-valuenow") or -1) for m in page.locator("#bars [role=meter]").all()]
    assert values == sorted(values, reverse=True)
    expect(page.locator("#original img")).to_be_visible()
    expect(page.get_by_text("Research use only").first).to_be_visible()
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#tiles figure")).to_have_count(3)


def test_controls_redraw_without_asking_the_server_again(page: Page, host: Host) -> None:
    _ask_example(page)
    asked = host.queries
    for element in ("#opacity", "#threshold"):
        before = page.locator("#overlay img").get_attribute("src")
        slider = page.locator(f"{element} input[type=range]")
        slider.focus()
        slider.press("Home")
        expect(page.locator("#overlay img")).not_to_have_attribute("src", before or "", timeout=10_000)
        slider.press("End")
    page.locator("#bars button").last.click()
    expect(page.locator("#overlay figcaption")).to_contain_text(page.locator("#bars button").last.inner_text())
    assert host.queries == asked


def test_outlines_of_several_findings_carry_their_names(page: Page) -> None:
    _ask_example(page)
    slider = page.locator("#threshold input[type=number]")
    slider.fill("0.05")
    slider.press("Enter")
    for index in (0, 1):
        page.locator("#outlined label").nth(index).click()
    expect(page.locator("#overlay svg text")).to_have_count(2, timeout=10_000)


def test_a_reader_types_own_findings(page: Page) -> None:
    _ask_example(page)
    page.locator("#findings textarea").fill("mass\n\nThere is a fracture\nmass")
    page.locator("#ask").click()
    expect(page.locator("#bars li")).to_have_count(2, timeout=20_000)


def test_an_upload_is_read_and_its_name_is_nowhere(page: Page, film: bytes) -> None:  # noqa: F811
    page.locator("#upload input[type=file]").set_input_files(
        {"name": "DOE^JANE.dcm", "mimeType": "application/dicom", "buffer": film}
    )
    expect(page.locator("#original img")).to_be_visible(timeout=40_000)
    expect(page.locator("#original figcaption")).to_contain_text("Your image")
    assert "DOE" not in page.content()


def test_an_unreadable_file_is_explained_and_leaves_nothing_of_the_last_image(page: Page) -> None:
    _ask_example(page)
    upload = {"name": "text.dcm", "mimeType": "application/dicom", "buffer": b"plain text\n" * 40}
    page.locator("#upload input[type=file]").set_input_files(upload)
    expect(page.get_by_role("alert")).to_contain_text("cannot be read", timeout=20_000)
    expect(page.locator("#bars li")).to_have_count(0)
    _ask_example(page)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_retrieval_both_ways_and_the_card(page: Page) -> None:
    _ask_example(page)
    page.get_by_role("tab", name="Retrieve").click()
    page.locator("#find-sentences").click()
    expect(page.locator("#sentences li")).to_have_count(4, timeout=20_000)
    page.locator("#text textarea, #text input").fill("nodule")
    page.locator("#find-images").click()
    expect(page.locator("#hits figure")).to_have_count(3, timeout=20_000)
    page.get_by_role("tab", name="Model").click()
    expect(page.locator("#about")).to_contain_text("0.400 to 0.600")


def test_two_readers_do_not_see_each_other(page: Page, browser: Browser, url: str) -> None:
    _ask_example(page, 1)
    other = browser.new_page()
    other.goto(url)
    expect(other.locator("#examples button")).to_have_count(3, timeout=30_000)
    expect(other.locator("#bars li")).to_have_count(0)
    _ask_example(other, 2)
    expect(page.locator("#original figcaption")).to_contain_text("Noise 1")
    expect(other.locator("#original figcaption")).to_contain_text("Noise 2")
    other.close()


def test_the_page_says_when_the_server_is_away_and_recovers(page: Page, host: Host) -> None:
    _ask_example(page)
    host.stop()
    try:
        page.locator("#ask").click()
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached", timeout=20_000)
        expect(page.locator("#retry")).to_be_visible()
    finally:
        host.start()
    expect(page.get_by_role("alert")).to_have_count(0, timeout=20_000)
    _ask_example(page, 2)


def test_texts_from_outside_are_escaped() -> None:
    from ui import fragments
    from ui.client import ServerError

    assert "<script" not in fragments.error_box(ServerError("<script>", "<script>"))
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
