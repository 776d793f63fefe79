"""Accessibility: axe-core finds nothing serious on any tab, in light and dark, at a desk's and a phone's width."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.ui.conftest import open_page, pick, shoot, tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"


def _violations(page: Page) -> list[str]:
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{v['id']} ({v['impact']}): {node['html'][:160]} | {node['any'][0]['message'][:160] if node['any'] else ''}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_nothing_serious_on_any_tab(context: BrowserContext, url: str, theme: str, width: int) -> None:
    if not AXE.exists():
        pytest.skip("needs axe-core: infra/install-axe")
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    open_page(page, f"{url}?__theme={theme}")
    pick(page)
    page.locator("#view [data-frame]").last.click()
    expect(page.locator("#point li")).to_have_count(3, timeout=10_000)
    found = _violations(page)
    tab(page, "Compare")
    page.locator("#compare").click()
    expect(page.locator("#compared tbody tr")).to_have_count(3, timeout=30_000)
    shoot(page, f"compare-{theme}-{width}")
    found += _violations(page)
    tab(page, "Retrieve")
    page.locator("#find-sentences").click()
    expect(page.locator("#sentences li")).to_have_count(4, timeout=20_000)
    found += _violations(page)
    tab(page, "Explain")
    found += _violations(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing runs off the side"
    shoot(page, f"explain-{theme}-{width}")
    page.close()
    assert not found, "\n".join(sorted(set(found)))
