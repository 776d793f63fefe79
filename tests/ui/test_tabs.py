"""The other tabs, and the planes of a CT."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.serve.conftest import png
from tests.ui.conftest import drop, pick, shoot, tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


def _captions(page: Page) -> list[str]:
    return [text.strip() for text in page.locator(".rz-planes figcaption").all_inner_texts()]


def test_a_ct_is_leafed_through_in_three_planes(page: Page, ct_nifti: bytes) -> None:
    page.locator("#findings textarea").fill("nodule\neffusion")
    drop(page, "ct.nii.gz", ct_nifti)
    expect(page.locator(".rz-planes figure")).to_have_count(3, timeout=60_000)
    expect(page.locator("#model input")).to_have_value("volumes")
    expect(page.locator(".rz-profile polyline")).to_have_count(1)
    at_peak = _captions(page)
    page.locator("[data-frame=coronal]").click(position={"x": 40, "y": 30})
    expect(page.locator("#point li")).to_have_count(2, timeout=10_000)
    expect(page.locator(".rz-planes figcaption").first).not_to_have_text(at_peak[0], timeout=10_000)
    moved = _captions(page)
    assert moved[1] == at_peak[1], "pointing at a coronal slice stays on it"
    page.locator("[data-frame=axial]").hover()
    page.mouse.wheel(0, 120)
    expect(page.locator(".rz-planes figcaption").first).not_to_have_text(moved[0], timeout=10_000)
    slider = page.locator("#sagittal input[type=range]")
    slider.focus()
    slider.press("End")
    expect(page.locator(".rz-planes figcaption").last).to_contain_text(
        f"{slider.get_attribute('max')} of {slider.get_attribute('max')}", timeout=10_000
    )
    base = page.locator("[data-frame=axial] .rz-base").get_attribute("src")
    page.get_by_label("Bone").check()
    expect(page.locator("[data-frame=axial] .rz-base")).not_to_have_attribute("src", base or "", timeout=10_000)
    page.locator("#to-peak").click()
    expect(page.locator(".rz-planes figcaption").first).to_have_text(at_peak[0], timeout=10_000)
    assert _captions(page) == at_peak
    shoot(page, "ct")


def test_a_zipped_series_is_read_and_saved_as_dicom(page: Page, ct_series: bytes) -> None:
    page.locator("#findings textarea").fill("nodule")
    drop(page, "series.zip", ct_series)
    expect(page.locator(".rz-planes figure")).to_have_count(3, timeout=60_000)
    with page.expect_download(timeout=60_000) as download:
        page.locator("#save-seg").click()
    assert download.value.suggested_filename == "rayzero-findings-seg.dcm"
    with page.expect_download(timeout=30_000):
        page.locator("#save-png").click()


def test_two_models_and_a_prior_are_compared(page: Page) -> None:
    pick(page)
    tab(page, "Compare")
    page.locator("#compare").click()
    expect(page.locator("#compared tbody tr")).to_have_count(3, timeout=30_000)
    expect(page.locator("#compared h3")).to_have_text(["radzero", "studies"])
    expect(page.locator("#compared .rz-chosen")).to_have_count(1)
    name = page.locator("#compared tbody button").last.inner_text()
    page.locator("#compared tbody button").last.click()
    expect(page.locator("#compared .rz-chosen")).to_contain_text(name, timeout=10_000)
    page.locator("#prior input").click()
    page.get_by_role("option", name="Noise 2").click()
    expect(page.locator("#compared h3")).to_have_text(["Prior: Noise 2", "Current: Noise 1"], timeout=30_000)
    shoot(page, "compare")
    drop(page, "prior.png", png(1), "#prior-file")
    expect(page.locator("#compared h3").first).to_have_text("Prior: your prior", timeout=30_000)
    # The same pixels before and now: nothing changed.
    expect(page.locator("#compared td.rz-percent")).to_have_text(["0", "0", "0"])
    expect(page.locator("#compared")).to_contain_text("Changed by ten points or more: none")


def test_search_both_ways_and_the_card(page: Page) -> None:
    tab(page, "Retrieve")
    page.locator("#find-sentences").click()
    expect(page.locator("#sentences")).to_contain_text("No image yet", timeout=10_000)
    tab(page, "Query")
    pick(page)
    tab(page, "Retrieve")
    page.locator("#find-sentences").click()
    expect(page.locator("#sentences li")).to_have_count(4, timeout=20_000)
    page.locator("#text textarea, #text input").fill("nodule")
    page.keyboard.press("Enter")
    expect(page.locator("#hits figure")).to_have_count(3, timeout=20_000)
    shoot(page, "retrieve")
    tab(page, "Explain")
    expect(page.locator("#about")).to_contain_text("0.400 to 0.600")
    expect(page.locator("#about")).to_contain_text("It must not be used for")
    shoot(page, "explain")
