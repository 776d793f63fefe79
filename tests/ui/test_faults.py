"""What the page says when something is wrong, and how it comes back."""

from __future__ import annotations

import json
import os

import pytest
from playwright.sync_api import Page, expect

from tests.ui.conftest import Host, Refusal, drop, pick, shoot
from ui import fragments
from ui.client import Server, ServerError

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


def _problem(slug: str, title: str, detail: str, status: int, headers: dict[bytes, bytes]) -> Refusal:
    body = {"type": f"urn:rayzero:problem:{slug}", "title": title, "status": status, "detail": detail}
    return status, headers, json.dumps(body).encode()


def test_an_unreadable_file_is_explained_and_leaves_nothing_of_the_last_image(page: Page) -> None:
    pick(page)
    drop(page, "text.dcm", b"plain text\n" * 40)
    expect(page.get_by_role("alert")).to_contain_text("cannot be read", timeout=20_000)
    expect(page.locator("#bars li")).to_have_count(0)
    expect(page.locator("#view img")).to_have_count(0)
    shoot(page, "unreadable")
    pick(page)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_nothing_typed_and_nothing_chosen_are_told(page: Page) -> None:
    page.locator("#ask").click()
    expect(page.get_by_role("alert")).to_contain_text("No image yet", timeout=10_000)
    pick(page)
    page.locator("#findings textarea").fill("")
    page.locator("#ask").click()
    expect(page.get_by_role("alert")).to_contain_text("No findings yet", timeout=10_000)
    expect(page.locator("#bars li")).to_have_count(3)


def test_the_page_says_when_the_server_is_away_and_asks_again_by_itself(page: Page, host: Host, url: str) -> None:
    pick(page)
    host.stop()
    late = page.context.new_page()
    try:
        page.locator("#findings textarea").fill("mass")
        page.locator("#ask").click()
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached", timeout=20_000)
        expect(page.locator("#retry")).to_be_visible()
        shoot(page, "away")
        late.goto(url)
        expect(late.get_by_role("alert")).to_contain_text("cannot be reached", timeout=20_000)
    finally:
        host.start()
    expect(page.get_by_role("alert")).to_have_count(0, timeout=20_000)
    expect(page.locator("#bars li")).to_have_count(1, timeout=20_000)
    expect(late.locator("#examples button")).to_have_count(3, timeout=20_000)
    late.close()


def test_a_busy_server_is_asked_again_and_a_failed_one_is_not(page: Page, host: Host) -> None:
    busy = _problem("busy", "The server is busy", "Too many requests at once.", 503, {b"retry-after": b"1"})
    host.refusals = [busy]
    page.locator("#examples button").nth(1).click()
    expect(page.get_by_role("alert")).to_contain_text("The server is busy", timeout=20_000)
    expect(page.locator("#bars li")).to_have_count(3, timeout=20_000)
    expect(page.get_by_role("alert")).to_have_count(0)
    host.refusals = [_problem("internal", "The server failed to answer", "Quote incident 12ab.", 500, {})]
    page.locator("#ask").click()
    expect(page.get_by_role("alert")).to_contain_text("incident 12ab", timeout=20_000)
    expect(page.locator("#retry")).to_be_hidden()
    page.locator("#ask").click()
    expect(page.get_by_role("alert")).to_have_count(0, timeout=20_000)


def test_a_slow_server_shows_that_it_is_at_work(page: Page, host: Host) -> None:
    host.delay_s = 2.0
    try:
        page.locator("#examples button").nth(1).click()
        expect(page.locator("#bars [data-testid=status-tracker]")).to_contain_text("s", timeout=5_000)
        expect(page.locator("#bars li")).to_have_count(3, timeout=20_000)
    finally:
        host.delay_s = 0.0


def test_no_answer_in_time_is_told_as_slow(host: Host) -> None:
    host.delay_s = 1.5
    try:
        with pytest.raises(ServerError, match="slow") as raised:
            Server(host.url, answer_s=0.3).query("img-0", ["mass"], None)
    finally:
        host.delay_s = 0.0
    assert raised.value.passing


@pytest.mark.parametrize(
    ("status", "body", "passing"), [(502, b"<html>bad gateway</html>", True), (400, b"nonsense", False)]
)
def test_an_answer_that_is_not_the_servers_own(host: Host, status: int, body: bytes, passing: bool) -> None:
    host.refusals = [(status, {b"content-type": b"text/html"}, body)]
    with pytest.raises(ServerError, match="not ready") as raised:
        Server(host.url).query("img-0", ["mass"], None)
    assert raised.value.passing is passing


def test_texts_from_outside_are_escaped() -> None:
    assert "<script" not in fragments.error_box(ServerError("<script>", "<script>"))
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
