"""The Query tab: images in, bars and maps out, from words to places and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio.state_holder import SessionState
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect

from tests.serve.conftest import png
from tests.ui.conftest import Host, drop, open_page, pick, shoot, tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


def _value(page: Page, element: str, value: str) -> None:
    number = page.locator(f"{element} input[type=number]")
    number.fill(value)
    number.press("Enter")


def test_an_example_shows_ranked_bars_and_a_map(page: Page) -> None:
    pick(page)
    expect(page.locator("#bars li")).to_have_count(3)
    values = [int(m.get_attribute("aria-valuenow") or -1) for m in page.locator("#bars [role=meter]").all()]
    assert values == sorted(values, reverse=True)
    expect(page.locator("#bars")).to_contain_text("calibrated on validation studies")
    # Each with its interval: a whisker that holds the end of the bar, the same in words.
    for row in page.locator("#bars li").all():
        bar, whisker = row.locator(".rz-meter > i").bounding_box(), row.locator(".rz-whisker").bounding_box()
        assert bar is not None
        assert whisker is not None
        assert whisker["x"] - 1 <= bar["x"] + bar["width"] <= whisker["x"] + whisker["width"] + 1
        expect(row.locator("[role=meter]")).to_have_attribute("aria-valuetext", re.compile("95% interval"))
        expect(row.locator(".rz-interval")).to_have_text(re.compile(r"^\d+ to \d+%$"))
    expect(page.locator("#view .rz-base")).to_have_count(2)
    expect(page.get_by_text("Research use only").first).to_be_visible()
    shoot(page, "query")


def test_controls_redraw_without_asking_the_server_again(page: Page, host: Host) -> None:
    pick(page)
    asked = host.queries
    over = page.locator("#view .rz-over")
    before = over.get_attribute("src")
    _value(page, "#threshold", "0.05")
    expect(over).not_to_have_attribute("src", before or "", timeout=10_000)
    expect(page.locator("#view rect")).to_have_count(2)
    page.get_by_label("Contour").uncheck()
    expect(page.locator("#view polygon")).to_have_count(0)
    page.locator("#opacity input[type=range]").focus()
    page.keyboard.press("Home")
    expect(over).to_have_css("opacity", "0")
    page.locator("#bars button").last.click()
    expect(page.locator("#view figcaption").last).to_contain_text(page.locator("#bars button").last.inner_text())
    assert host.queries == asked


def test_a_films_window_is_cut_from_its_stored_values(page: Page, host: Host) -> None:
    pick(page, 0)
    asked = host.queries
    base = page.locator("#view .rz-base").last
    own = base.get_attribute("src") or ""
    width = page.locator("#width input[type=range]")
    widest = width.get_attribute("max") or "0"
    assert int(widest) > 256, "the film has more than 8 bits"
    level, before = (page.locator(f"{one} input[type=number]").input_value() for one in ("#level", "#width"))
    _value(page, "#width", "200")
    expect(base).not_to_have_attribute("src", own, timeout=10_000)
    narrow = base.get_attribute("src") or ""
    with page.expect_download(timeout=30_000) as download:
        page.locator("#save-png").click()
    saved = Image.open(download.value.path()).convert("L")
    shades = np.bincount(np.asarray(saved)[14:600, 14:600].ravel(), minlength=256)
    assert shades[[0, 255]].sum() > 0, "a narrow window has black and white"
    # Another question about the image leaves its window; the file's own comes back with its values.
    page.locator("#findings textarea").fill("mass")
    page.locator("#ask").click()
    expect(page.locator("#bars li")).to_have_count(1, timeout=20_000)
    expect(base).to_have_attribute("src", narrow)
    page.locator("#own-window").click()
    expect(page.locator("#width input[type=number]")).to_have_value(before)
    expect(base).to_have_attribute("src", own, timeout=10_000)
    assert page.locator("#level input[type=number]").input_value() == level
    assert host.queries == asked + 1
    pick(page, 1)
    expect(width).not_to_have_attribute("max", widest)


def test_a_number_beyond_its_slider_is_held_to_it(page: Page) -> None:
    pick(page)
    number = page.locator("#threshold input[type=number]")
    before = number.input_value()
    for typed, held in (("7", "1"), ("-3", "0")):
        _value(page, "#threshold", typed)
        expect(number).to_have_value(held)
    number.fill("")
    number.blur()
    expect(number).to_have_value("0")
    _value(page, "#threshold", before)
    page.wait_for_timeout(500)
    expect(page.get_by_test_id("toast-body")).to_have_count(0)


def test_labels_of_several_findings_come_with_a_legend(page: Page) -> None:
    pick(page)
    _value(page, "#threshold", "0.02")
    page.get_by_label("Labels", exact=True).check()
    expect(page.locator(".rz-legend li")).to_have_count(3, timeout=10_000)
    expect(page.locator("#view svg text")).to_have_count(3)
    page.locator("#labelled label").first.click()
    expect(page.locator(".rz-legend li")).to_have_count(2, timeout=10_000)
    shoot(page, "labels")
    page.get_by_label("All maps").check()
    expect(page.locator("#view .rz-tiles figure")).to_have_count(3, timeout=10_000)


def test_pointing_at_the_image_tells_which_findings_live_there(page: Page) -> None:
    pick(page)
    frame = page.locator("#view [data-frame]").last
    frame.click(position={"x": 60, "y": 90})
    expect(page.locator("#point li")).to_have_count(3, timeout=10_000)
    expect(page.locator("#view .rz-cross")).to_have_count(2)
    before = page.locator("#point .rz-foot").inner_text()
    # The same without a mouse; the redraw leaves the focus where it was.
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator("#point .rz-foot")).not_to_have_text(before, timeout=10_000)
    expect(page.locator("#view [data-frame]").last).to_be_focused()
    label = page.locator("#point button").last.inner_text()
    page.locator("#point button").last.click()
    expect(page.locator("#view figcaption").last).to_contain_text(label, timeout=10_000)


def test_a_further_finding_is_proposed_and_sends_no_image_again(page: Page, host: Host, film: bytes) -> None:
    drop(page, "DOE^JANE.dcm", film)
    expect(page.locator("#bars li").first).to_be_visible(timeout=40_000)
    expect(page.locator("#view figcaption").first).to_contain_text("Your image")
    assert host.bodies[-1] > len(film)
    assert "DOE" not in page.content()
    box = page.locator("#findings textarea")
    box.fill("edema\n\nThere is a fracture\nmass\nmass\n")
    box.press("Control+End")
    page.keyboard.type("pneu")
    expect(page.locator("#rz-proposed li").first).to_have_text("pneumonia")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#rz-proposed")).to_be_hidden()
    assert box.input_value().endswith("mass\npneumonia")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#bars li")).to_have_count(4, timeout=20_000)
    assert host.bodies[-1] < 5_000


def test_png_and_jpeg_are_read(page: Page) -> None:
    from io import BytesIO

    jpeg = BytesIO()
    Image.open(BytesIO(png(5))).save(jpeg, "JPEG")
    for name, data in (("a.png", png(4)), ("b.jpg", jpeg.getvalue())):
        page.locator("#bars").evaluate("element => element.dataset.seen = ''")
        before = page.locator("#view .rz-base").first.get_attribute("src") if name == "b.jpg" else ""
        drop(page, name, data)
        expect(page.locator("#view .rz-base").first).not_to_have_attribute("src", before or "", timeout=30_000)
        expect(page.locator("#bars li").first).to_be_visible(timeout=30_000)


def test_what_is_on_the_screen_can_be_saved(page: Page, tmp_path: Path) -> None:
    pick(page, 0)
    kept = {}
    for form in ("png", "json", "seg", "sr"):
        with page.expect_download(timeout=30_000) as download:
            page.locator(f"#save-{form}").click()
        download.value.save_as(tmp_path / form)
        kept[download.value.suggested_filename] = (tmp_path / form).read_bytes()
    assert kept["rayzero-maps.png"].startswith(b"\x89PNG")
    assert json.loads(kept["rayzero-answer.json"])["model"] == "radzero"
    assert kept["rayzero-findings-seg.dcm"][128:132] == b"DICM"
    assert kept["rayzero-findings-sr.dcm"][128:132] == b"DICM"
    pick(page, 1)
    page.locator("#save-seg").click()
    expect(page.locator("#save-error")).to_contain_text("not DICOM", timeout=10_000)


def test_further_films_of_a_study_go_to_a_model_that_reads_them(page: Page, host: Host) -> None:
    pick(page)
    expect(page.locator("#lateral")).to_be_hidden()
    page.locator("#model input").click()
    page.get_by_role("option", name="studies").click()
    expect(page.locator("#bars")).to_contain_text("studies", timeout=20_000)
    expect(page.locator("#bars .rz-whisker")).to_have_count(0)
    page.get_by_role("button", name="Further films of this study").click()
    asked = host.queries
    drop(page, "side.png", png(9), "#lateral")
    for _ in range(200):
        if host.queries > asked:
            break
        page.wait_for_timeout(50)
    assert host.bodies[-1] > len(png(9)), "the lateral film goes with the question"
    expect(page.locator("#attached")).to_contain_text("lateral")
    assert "side.png" not in page.content()
    page.locator("#detach").click()
    expect(page.locator("#attached")).not_to_contain_text("lateral", timeout=10_000)


def test_two_readers_do_not_see_each_other(page: Page, context: BrowserContext, url: str) -> None:
    pick(page, 1)
    other = context.new_page()
    open_page(other, url)
    expect(other.locator("#bars li")).to_have_count(0)
    pick(other, 2)
    # Both ask at once, about different words.
    for reader, word in ((page, "mass"), (other, "fracture")):
        reader.locator("#findings textarea").fill(word)
        reader.locator("#ask").click()
    for reader, word, title in ((page, "mass", "Noise 1"), (other, "fracture", "Noise 2")):
        expect(reader.locator("#bars li")).to_have_count(1, timeout=20_000)
        expect(reader.locator("#bars li button")).to_have_text(word)
        expect(reader.locator("#view figcaption").first).to_contain_text(title)
    tab(other, "Retrieve")
    expect(page.get_by_role("tab", name="Query")).to_have_attribute("aria-selected", "true")
    other.close()


def test_a_session_that_was_forgotten_begins_anew(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    known = SessionState.__getitem__

    def forgotten(state: SessionState, key: int) -> Any:
        # What Gradio does with a state after its time to live.
        if isinstance(state.blocks_config.blocks[key], gr.State):
            state.state_data.pop(key, None)
        return known(state, key)

    pick(page)
    monkeypatch.setattr(SessionState, "__getitem__", forgotten)
    page.locator("#ask").click()
    expect(page.get_by_role("alert")).to_contain_text("forgets a session", timeout=10_000)
    monkeypatch.undo()
    pick(page, 2)
    expect(page.locator("#view figcaption").first).to_contain_text("Noise 2")


def test_a_late_answer_does_not_replace_a_newer_one(page: Page, host: Host) -> None:
    host.delay_s = 2.0
    page.locator("#examples button").nth(1).click()
    page.wait_for_timeout(600)
    host.delay_s = 0.0
    pick(page, 2)
    expect(page.locator("#view figcaption").first).to_contain_text("Noise 2")
    page.wait_for_timeout(2_000)
    expect(page.locator("#view figcaption").first).to_contain_text("Noise 2")
    expect(page.locator("#examples button").nth(2)).to_have_attribute("aria-pressed", "true")


def test_back_and_forward_move_between_tabs(page: Page, url: str) -> None:
    pick(page)
    tab(page, "Compare")
    tab(page, "Explain")
    assert page.url.endswith("#explain")
    selected = page.locator("[role=tab][aria-selected=true]")
    page.go_back()
    expect(selected).to_have_text("Compare")
    page.go_back()
    expect(selected).to_have_text("Query")
    expect(page.locator("#bars li")).to_have_count(3)
    page.go_forward()
    expect(selected).to_have_text("Compare")
