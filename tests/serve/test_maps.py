"""Peaks, boxes and areas in pixels of the image."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image as PillowImage

from rayzero.studies.preprocess import Geometry
from serve import maps


def _grid(row: int, column: int, side: int = 8) -> np.ndarray:
    grid = np.full((side, side), -4.0, dtype=np.float32)
    grid[row, column] = 4.0
    return grid


def test_peak_and_box_surround_the_hot_cell_of_a_stretched_image() -> None:
    found = maps.locate(_grid(1, 6), Geometry(800, 1600, "stretch"), threshold=0.0)
    assert found.peak[:2] == pytest.approx((1300, 150), abs=10)
    assert found.box is not None
    x0, y0, x1, y1 = found.box
    # Bilinear weights fall to one half in the middle between two cells.
    assert (x0, x1) == pytest.approx((1200, 1400), abs=15)
    assert (y0, y1) == pytest.approx((100, 200), abs=15)
    assert 0.005 < found.area_fraction < 0.03


def test_padding_is_undone() -> None:
    # 1600 x 800 padded to a square: its columns are cells 2 to 5 of 8.
    found = maps.locate(_grid(4, 2), Geometry(1600, 800, "pad"), threshold=0.0)
    assert found.peak[:2] == pytest.approx((100, 900), abs=10)
    assert maps.extent(Geometry(1600, 800, "pad")) == (-400, 0, 1200, 1600)


def test_a_map_of_a_cropped_film_covers_what_was_shown() -> None:
    # 1000 x 500 padded to a square, of which the centred 800 x 800 were shown: 150 columns beyond either side.
    geometry = Geometry(1000, 500, "pad", 0.8)
    assert maps.extent(geometry) == (-150, 100, 650, 900)
    found = maps.locate(_grid(1, 3), geometry, threshold=0.0)
    assert found.peak[:2] == pytest.approx((200, 250), abs=10)
    restored = geometry.restore(_grid(1, 3))
    assert restored.shape == (1000, 500)
    # Nothing is claimed of what was not shown.
    assert restored[:100].max() == restored[900:].max() == -4.0
    assert restored[249, 200] == pytest.approx(4.0, abs=0.1)


def test_no_box_below_the_threshold_and_only_the_area_of_the_peak_counts() -> None:
    grid = _grid(1, 1)
    assert maps.locate(grid, Geometry(80, 80, "stretch"), threshold=5.0).box is None
    grid[6, 6] = 3.0
    box = maps.locate(grid, Geometry(80, 80, "stretch"), threshold=0.0).box
    assert box is not None
    assert box[2] <= 40
    assert box[3] <= 40


def test_array_and_png_carry_the_map() -> None:
    grid = _grid(0, 7)
    assert np.array_equal(np.frombuffer(base64.b64decode(maps.encode_array(grid)), "<f4").reshape(8, 8), grid)
    picture = PillowImage.open(io.BytesIO(base64.b64decode(maps.encode_png(grid, Geometry(100, 200, "stretch"), 64))))
    assert picture.size == (64, 32)
    assert picture.mode == "L"
    assert picture.getpixel((63, 0)) == round(255 * maps.sigmoid(4.0))


def test_logit_and_sigmoid_are_inverse_and_do_not_overflow() -> None:
    assert maps.sigmoid(maps.logit(0.3)) == pytest.approx(0.3)
    assert maps.sigmoid(-1e6) == 0.0
    assert maps.sigmoid(1e6) == 1.0
