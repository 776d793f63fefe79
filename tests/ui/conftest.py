"""A reader's hands on the real page: headless Chromium, the page over HTTP, and a real (untrained) server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from serve.api import create_api
from serve.engine import Engine
from serve.examples import ExampleSet
from serve.service import Service
from serve.settings import Limits
from tests.ports import free_port
from tests.serve.conftest import (  # noqa: F401
    bundle_url,
    ct,
    ct_nifti,
    ct_series,
    examples_folder,
    film,
    reader,
    study_bundle_url,
    volume_bundle_url,
)
from tests.serve.local import LocalClient
from ui import app

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# Pictures of every tab, to be looked at after a run; git ignores the folder.
PICTURES = Path(__file__).parents[2] / "build" / "page"


Refusal = tuple[int, dict[bytes, bytes], bytes]


class Host:
    """The server in a thread, so that a test can take it away, slow it down, make it refuse, and count."""

    def __init__(self, bundles: dict[str, str], examples: str, sandbox: object) -> None:
        clients = [LocalClient(Engine.load(name, url, "cpu", 64)) for name, url in bundles.items()]
        service = Service(clients, ExampleSet.load(examples), Limits(), reader=sandbox)  # type: ignore[arg-type]
        self.bodies: list[int] = []
        self.refusals: list[Refusal] = []
        self.delay_s = 0.0
        api = create_api(service, token=None)

        async def watched(scope, receive, send):  # type: ignore[no-untyped-def]
            if scope.get("path") != "/v1/query":
                await api(scope, receive, send)
                return
            await asyncio.sleep(self.delay_s)
            self.bodies.append(int(dict(scope["headers"])[b"content-length"]))
            if not self.refusals:
                await api(scope, receive, send)
                return
            status, headers, body = self.refusals.pop(0)
            await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})
            await send({"type": "http.response.body", "body": body})

        self._app = watched
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def queries(self) -> int:
        return len(self.bodies)

    def start(self) -> None:
        self._server = uvicorn.Server(uvicorn.Config(self._app, port=self.port, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(timeout=20)


@pytest.fixture(scope="session")
def host(
    bundle_url: str,  # noqa: F811
    study_bundle_url: str,  # noqa: F811
    volume_bundle_url: str,  # noqa: F811
    examples_folder: str,  # noqa: F811
    reader: object,  # noqa: F811
) -> Iterator[Host]:
    bundles = {"radzero": bundle_url, "studies": study_bundle_url, "volumes": volume_bundle_url}
    host = Host(bundles, examples_folder, reader)
    yield host
    host.stop()


@pytest.fixture(scope="session")
def url(host: Host) -> Iterator[str]:
    yield app.launch(host.url, port=free_port(), block=False)
    gr.close_all()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs a browser at {CHROMIUM}: infra/install-chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def context(browser: Browser) -> Iterator[BrowserContext]:
    # One for all tests, so that the page's own files come from its cache; a reader's session is the page's.
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, url: str) -> Iterator[Page]:
    page = context.new_page()
    requested: list[str] = []
    broken: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    open_page(page, url)
    yield page
    outside = [u for u in requested if not u.startswith((url, "data:", "blob:"))]
    assert not outside, "the page fetches nothing from elsewhere"
    assert not broken, "no script of the page fails"
    page.close()


def open_page(page: Page, url: str) -> None:
    """Open the page and wait for its examples."""
    page.goto(url)
    expect(page.locator("#examples button")).to_have_count(3, timeout=30_000)


def pick(page: Page, index: int = 1) -> None:
    """Choose an example and wait for its answer."""
    example = page.locator("#examples button").nth(index)
    example.click()
    expect(example).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#view .rz-over")).to_be_visible(timeout=30_000)
    expect(page.locator("#bars li").first).to_be_visible()


def drop(page: Page, name: str, data: bytes, where: str = "#upload") -> None:
    """Upload a file."""
    page.locator(f"{where} input[type=file]").set_input_files(
        {"name": name, "mimeType": "application/octet-stream", "buffer": data}
    )


def tab(page: Page, name: str) -> None:
    """Open a tab."""
    page.get_by_role("tab", name=name).click()


def shoot(page: Page, name: str) -> None:
    """Keep a picture of the whole page."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
