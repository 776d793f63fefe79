"""The named intensity presets against their plain formulas, and the geometry of the encoder's input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayzero.config import DataConfig
from rayzero.studies.dicom import read_radiograph
from rayzero.studies.files import read_image
from rayzero.studies.preprocess import prepare, to_unit
from rayzero.studies.study import Image
from tests.studies.films import dataset, encode, raster

_RNG = np.random.default_rng(0)
_VALUES = (300 + 3000 * _RNG.random((40, 50)) ** 2).astype(np.uint16)


def _image(**header: Any) -> Image:
    return read_radiograph(encode(dataset(_VALUES, **header)))


@pytest.mark.parametrize("preset", ["radzero", "alta"])
@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_trap_01_division_by_the_maximum_comes_before_the_inversion(preset: Any, polarity: str) -> None:
    eight = np.rint(_VALUES * (255 / _VALUES.max())).clip(0, 255)
    expected = (255 - eight if polarity == "MONOCHROME1" else eight) / 255
    np.testing.assert_allclose(to_unit(_image(PhotometricInterpretation=polarity), preset), expected, atol=1e-6)


def test_carzero_takes_eight_bits_as_they_are_and_equalises_the_rest() -> None:
    eight = (_VALUES >> 4).astype(np.uint8)
    np.testing.assert_array_equal(to_unit(read_image(raster(eight)), "carzero"), eight / np.float32(255))
    unit = to_unit(_image(), "carzero")
    assert len(np.unique(unit)) <= 256
    assert (unit.min(), unit.max()) == (0, 1)
    # An equalised image has as many pixels below a grey level as the level says.
    for level in (0.25, 0.5, 0.75):
        assert abs((unit <= level).mean() - level) < 0.05
    order = np.argsort(_VALUES, axis=None, kind="stable")
    assert (np.diff(unit.ravel()[order]) >= 0).all()


def test_minmax_and_voi_without_a_window_stretch() -> None:
    low, high = int(_VALUES.min()), int(_VALUES.max())
    np.testing.assert_allclose(to_unit(_image(), "minmax"), (_VALUES - low) / (high - low), atol=1e-6)
    low, high = np.percentile(_VALUES, (0.5, 99.5))
    expected = np.clip((_VALUES - low) / (high - low), 0, 1)
    np.testing.assert_allclose(to_unit(_image(), "voi"), expected, atol=1e-5)


@pytest.mark.parametrize("preset", ["voi", "minmax", "radzero", "carzero", "alta"])
def test_a_flat_film_is_no_division_by_zero(preset: Any) -> None:
    for value in (0, 7):
        image = Image.from_array("x", np.full((4, 4), value, np.uint16), view="frontal", bits=12)
        assert np.isfinite(to_unit(image, preset)).all()


@pytest.mark.parametrize("geometry", ["stretch", "pad"])
def test_a_centre_crop_is_the_middle_of_the_whole_film(geometry: Any) -> None:
    """CARZero spec, section 1: the centred 224 of a film laid on 256."""
    y, x = np.mgrid[:40, :50]
    smooth = (2000 + 1000 * np.sin(y / 9) * np.cos(x / 7)).astype(np.uint16)
    film = Image.from_array("x", smooth, view="frontal", bits=12)
    whole, _ = prepare(film, DataConfig(geometry=geometry), 256)
    shown, laid = prepare(film, DataConfig(geometry=geometry, crop=0.875), 224)
    np.testing.assert_array_equal(shown, whole[:, 16:240, 16:240])
    # What was shown comes back to where it was; what was not has the least value.
    restored = laid.restore(shown[0])
    assert restored.shape == film.shape
    (top, bottom), (left, right) = laid.covered
    rows, columns = slice(max(0, top), bottom), slice(left, right)
    unit = to_unit(film, "voi")[rows, columns]
    assert np.corrcoef(restored[rows, columns].ravel(), unit.ravel())[0, 1] > 0.98
    assert (restored[:, :left] == shown.min()).all()
    assert (restored[:, right:] == shown.min()).all()
