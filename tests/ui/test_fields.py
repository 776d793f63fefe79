"""Maps as fields: the page draws them where the server finds them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from rayzero.studies.preprocess import Geometry
from rayzero.studies.volume_preprocess import VolumeGeometry
from serve import maps
from ui.fields import PLANES, Grid, from_plane, on_plane, plane_size
from ui.overlay import Look, compose, heat_layer, label_layer, locate, outlines
from ui.session import kind_of

RNG = np.random.default_rng(3)


def _server_png(grid: np.ndarray, geometry: Geometry | VolumeGeometry, z: int | None = None) -> np.ndarray:
    picture = Image.open(io.BytesIO(base64.b64decode(maps.encode_png(grid, geometry, 256, z))))
    return np.asarray(picture) / 255.0


@pytest.mark.parametrize(("kind", "height", "width"), [("stretch", 300, 200), ("pad", 180, 420), ("pad", 420, 180)])
def test_a_films_field_is_the_servers_own_map(kind: str, height: int, width: int) -> None:
    grid = RNG.normal(size=(8, 8)).astype(np.float32) * 2
    geometry = Geometry(height, width, kind)
    x0, y0, x1, y1 = maps.extent(geometry)
    field = Grid(grid, (height, width), ((y0, y1), (x0, x1))).film()
    theirs = _server_png(grid, geometry)
    assert field.shape == theirs.shape
    assert np.abs(field - theirs).mean() < 0.02


def test_an_axial_plane_is_the_servers_own_map() -> None:
    grid = RNG.normal(size=(4, 6, 6)).astype(np.float32) * 2
    geometry = VolumeGeometry((40, 60, 60), (3.0, 2.0, 2.0), (12, 24, 24), (10.0, 5.0, 5.0))
    x0, y0, x1, y1 = maps.extent(geometry)
    depth = maps.depth(geometry)
    assert depth is not None
    whole = Grid(grid, geometry.shape, (depth, (y0, y1), (x0, x1)))
    for z in (3, 20, 37):
        ours, theirs = whole.plane("axial", z), _server_png(grid, geometry, z)
        assert np.abs(ours - theirs).mean() < 0.03
    # Three planes through one voxel agree there, the head at the top of the upright ones.
    axial, coronal, sagittal = (whole.plane(plane, at) for plane, at in zip(PLANES, (12, 33, 45), strict=True))
    value = whole.at((12.5, 33.5, 45.5))
    assert axial[33, 45] == pytest.approx(value, abs=1e-6)
    assert coronal[39 - 12, 45] == pytest.approx(value, abs=1e-6)
    assert sagittal[39 - 12, 33] == pytest.approx(value, abs=1e-6)


def test_nothing_is_claimed_where_the_grid_does_not_reach() -> None:
    grid = Grid(np.full((2, 2), 5.0, np.float32), (10, 10), ((2.0, 8.0), (2.0, 8.0)))
    field = grid.film()
    assert field[0, 0] == 0.0
    assert field[5, 5] > 0.99


@pytest.mark.parametrize("plane", PLANES)
def test_a_place_on_a_plane_and_back(plane: str) -> None:
    shape, cursor = (30, 40, 50), (7, 21, 33)
    x, y = on_plane(plane, shape, cursor)
    assert from_plane(plane, shape, cursor, x, y) == cursor
    assert plane_size("coronal", shape, (5.0, 1.0, 2.0)) == (100.0, 150.0)


def test_a_hot_spot_is_outlined_boxed_and_coloured() -> None:
    field = np.zeros((20, 20), np.float32)
    field[4:8, 10:16] = 0.9
    region = locate(field, 0.5, 200, 200)
    assert region.box is not None
    assert np.allclose(region.box, (100, 40, 160, 80), atol=6)
    assert len(outlines(field, 0.5, 200, 200)) == 1
    layer = heat_layer(field, Look(threshold=0.5), (0.0, 0.9))
    assert layer.pixels[0, 0, 3] == 0
    assert layer.pixels[5, 12, 3] > 200
    drawn = compose(np.full((20, 20), 100, np.uint8), layer, Look(opacity=1.0))
    assert (drawn[0, 0] == 100).all()
    assert not (drawn[5, 12] == 100).all()


def test_the_strongest_finding_gives_a_pixel_its_label() -> None:
    one, other = np.full((4, 4), 0.6, np.float32), np.zeros((4, 4), np.float32)
    other[:2] = 0.8
    pixels = label_layer([one, other], ["#ff0000", "#00ff00"], 0.5).pixels
    assert tuple(pixels[0, 0]) == (0, 255, 0, 255)
    assert tuple(pixels[3, 0]) == (255, 0, 0, 255)
    assert label_layer([other], ["#00ff00"], 0.5).pixels[3, 0, 3] == 0


def test_kinds_are_told_apart_by_content(film: bytes, ct_nifti: bytes, ct_series: bytes) -> None:
    assert [kind_of(data) for data in (film, ct_nifti, ct_series)] == ["radiograph", "volume", "volume"]
