"""Uploads are told apart by content, read without loss, and refused with the formats that are accepted."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from rayzero.studies import files
from rayzero.studies.errors import StudyFileError
from rayzero.studies.files import read_image
from tests.studies.films import film_bytes, ramp


def _saved(pixels: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def test_dicom_is_known_by_content_with_or_without_a_preamble() -> None:
    data = film_bytes()
    image = read_image(data, name="chest.png")
    assert image.image_id == "chest.png"
    assert read_image(data[132:]).sha256 == image.sha256


@pytest.mark.parametrize("bits", [8, 16])
def test_png_keeps_its_depth(bits: int) -> None:
    pixels = ramp(bits).astype(np.uint8 if bits == 8 else np.uint16)
    image = read_image(_saved(pixels))
    np.testing.assert_array_equal(image.array(), pixels)
    assert (image.bits, image.view, image.spacing_mm) == (bits, "unknown", ())


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_becomes_luma(channels: int) -> None:
    grey = (ramp(8) & 255).astype(np.uint8)
    image = read_image(_saved(np.stack([grey] * channels, axis=-1)))
    np.testing.assert_array_equal(image.array(), grey)


def test_jpeg_reads() -> None:
    grey = (ramp(8) & 255).astype(np.uint8)
    assert abs(read_image(_saved(grey, "JPEG")).array().astype(int) - grey).max() < 12


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "empty"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"%PDF-1.7", "a PDF document"),
        ("Größe".encode(), "plain text"),
        (bytes(range(256)), "unknown format"),
    ],
)
def test_others_are_named_and_refused(data: bytes, found: str) -> None:
    with pytest.raises(StudyFileError, match=found) as caught:
        read_image(data)
    assert "DICOM, PNG or JPEG" in caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_cut_short_is_refused(kind: str) -> None:
    data = _saved(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8), kind)
    with pytest.raises(StudyFileError, match="damaged or cut short"):
        read_image(data[: len(data) // 2])


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_PIXELS", 100)
    with pytest.raises(StudyFileError, match="beyond 100 pixels"):
        read_image(_saved(ramp(8).astype(np.uint8)))
