"""What a reader waits for: from dropping a radiograph on the page to its first bars, beyond the API's own time.

python -m tests.benchmarks.page [--bundle FOLDER] [--rounds N] [--out FILE]

The server and the page run as processes of their own, the page as ``python -m ui.app``, Chromium drives it. In turn, a
real film is dropped on a freshly opened page, and the same film under another identity (so that nothing is cached) is
sent straight to the API. Then a further finding is typed. Without --bundle an untrained RadZero at 224 pixels answers.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx
import pydicom
import torch
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from serve.api import create_api
from serve.engine import Engine
from serve.examples import ExampleSet
from serve.service import Service
from serve.settings import Limits
from tests.benchmarks.harness import Row, report, seconds
from tests.benchmarks.serving import untrained
from tests.ports import free_port
from tests.serve.conftest import FILMS
from tests.serve.local import LocalClient
from tests.ui.conftest import CHROMIUM, FLAGS

_FINDINGS = ("pneumonia", "pleural effusion", "pneumothorax", "cardiomegaly", "lung nodule")
_BAR_S = 1.5
# A reader needs longer than this to find the film.
_SETTLED_MS = 2000


def film(seed: int) -> bytes:
    """A real chest film under an identity of its own."""
    dataset = pydicom.dcmread(FILMS / "RG1_UNCR.dcm")
    dataset.PatientID = f"film-{seed}"
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def _serve(bundle: str, port: int) -> None:
    torch.set_num_threads(1)
    service = Service([LocalClient(Engine.load("radzero", bundle, "cpu", 4096))], ExampleSet.load(""), Limits())
    service.images.start()
    uvicorn.run(create_api(service, token=None), port=port, log_level="error", lifespan="off")


def _until(url: str, patience: float = 120.0) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise TimeoutError(f"{url} did not answer within {patience:.0f} s")


def _open(browser: Browser, url: str) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(url)
    page.get_by_text("This server ships no examples").wait_for()
    page.locator("#findings textarea").fill("\n".join(_FINDINGS))
    page.wait_for_timeout(_SETTLED_MS)
    return page


def _drop(page: Page, file: Path) -> None:
    page.locator("#upload input[type=file]").set_input_files(file)
    page.locator("#bars li").nth(len(_FINDINGS) - 1).wait_for()


def _further(page: Page, word: str) -> None:
    count = page.locator("#bars li").count()
    box = page.locator("#findings textarea")
    box.press("Control+End")
    page.keyboard.type(f"\n{word}")
    page.keyboard.press("Control+Enter")
    page.locator("#bars li").nth(count).wait_for()


def measure(browser: Browser, url: str, server: str, rounds: int, folder: Path) -> list[Row]:
    """The figures, each the median of ``rounds``; a round before them warms both up."""
    shown, alone, beyond, further, again = [], [], [], [], []
    with httpx.Client(base_url=server, timeout=60, trust_env=False) as api:

        def ask(data: bytes | None, prompts: list[str], image_id: str = "") -> httpx.Response:
            form = {"prompts": prompts, "maps": "array", **({"image_id": image_id} if image_id else {})}
            answer = api.post("/v1/query", data=form, files=None if data is None else {"file": ("film", data)})
            return answer.raise_for_status()

        for turn in range(rounds + 1):
            sent, dropped = film(2 * turn), folder / "film.dcm"
            dropped.write_bytes(film(2 * turn + 1))
            page = _open(browser, url)
            seen = seconds(lambda page=page, dropped=dropped: _drop(page, dropped))
            own = seconds(lambda sent=sent: ask(sent, list(_FINDINGS)))
            word = f"finding number {turn}"
            typed = seconds(lambda page=page, word=word: _further(page, word))
            known = ask(sent, list(_FINDINGS)).json()["image"]["image_id"]
            words = [*_FINDINGS, f"{word} again"]
            asked = seconds(lambda words=words, known=known: ask(None, words, known))
            page.close()
            if turn:
                shown.append(seen)
                alone.append(own)
                beyond.append(seen - own)
                further.append(typed)
                again.append(asked)
    return [
        Row("film to first bars, s (other: the API alone)", median(shown), median(alone)),
        Row("film to first bars beyond the API, s", median(beyond), bar=_BAR_S),
        Row("a further finding, s (other: the API alone)", median(further), median(again)),
    ]


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.page", description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", help="folder of a radiograph bundle")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args()
    port, page_port = free_port(), free_port()
    server, url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{page_port}"
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or untrained(Path(folder))
        api = multiprocessing.get_context("spawn").Process(target=_serve, args=(bundle, port))
        api.start()
        page = subprocess.Popen([sys.executable, "-m", "ui.app", "--server", server, "--port", str(page_port)])
        try:
            _until(f"{server}/healthz")
            _until(url)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                rows = measure(browser, url, server, options.rounds, Path(folder))
                browser.close()
        finally:
            page.terminate()
            api.terminate()
    size = len(film(0)) / 2**20
    note = f"a DICOM film of {size:.1f} MiB, {len(_FINDINGS)} findings; server, page and browser share the machine"
    raise SystemExit(0 if report("page", rows, options.out, note=note) else 1)


if __name__ == "__main__":
    main()
