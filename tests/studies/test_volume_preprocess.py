"""Resampling agrees with plain formulas, crops and padding fall where the specs say, and maps find their way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rayzero.config import ConfigError, DataConfig, load_config
from rayzero.studies.study import Image
from rayzero.studies.volume_preprocess import PRESETS, VolumeGeometry, prepare_volume


def _image(hu: np.ndarray, spacing: tuple[float, float, float]) -> Image:  # type: ignore[type-arg]
    return Image.from_array("v", hu.astype(np.int16), view="volume", bits=16, spacing_mm=spacing)


def _data(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> DataConfig:
    return DataConfig(volume_spacing_mm=spacing, volume_shape=shape)


def test_defaults_are_the_brgsa_preset_and_presets_are_settings() -> None:
    assert DataConfig(**PRESETS["brgsa"]) == DataConfig()
    clip = DataConfig(**PRESETS["ct-clip"])
    pixels, _ = prepare_volume(_image(np.full((4, 4, 4), 40), (3.0, 3.0, 3.0)), clip)
    assert pixels.shape == (1, 240, 480, 480)
    assert (pixels[0, 0, 0, 0], pixels.dtype) == (-1.0, np.float32)
    assert pixels[0, 120, 240, 240] == pytest.approx(0.04, abs=1e-6)


def test_on_its_own_grid_a_volume_is_only_scaled() -> None:
    hu = np.random.default_rng(0).integers(-1500, 1500, (5, 6, 7))
    pixels, geometry = prepare_volume(_image(hu, (3.0, 1.5, 1.5)), _data((3.0, 1.5, 1.5), (5, 6, 7)))
    np.testing.assert_allclose(pixels[0], np.clip(hu / 1000, -1, 1), atol=1e-6)
    grid = np.random.default_rng(1).random((5, 6, 7), dtype=np.float32)
    np.testing.assert_allclose(geometry.restore(grid), grid, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "size", "low"),
    [(9, 4, 3), (8, 4, 2), (5, 4, 1), (4, 4, 0), (3, 4, 0), (3, 5, -1), (3, 6, -1), (2, 7, -2)],
)
def test_crop_takes_the_ceiling_and_padding_the_floor_on_the_low_side(count: int, size: int, low: int) -> None:
    """BrgSA spec, section 1: ceil(extra / 2) goes from the low side, floor(missing / 2) is put there."""
    hu = np.arange(count * 8).reshape(count, 2, 4)
    for axis in range(3):
        turned = np.moveaxis(hu, 0, axis)
        shape = tuple(size if k == axis else n for k, n in enumerate(turned.shape))
        pixels, _ = prepare_volume(_image(turned, (1.0, 1.0, 1.0)), _data((1.0, 1.0, 1.0), shape))  # type: ignore[arg-type]
        got = np.moveaxis(pixels[0], axis, 0)
        for k in range(size):
            inside = 0 <= k + low < count
            expected = hu[k + low] / 1000 if inside else np.full((2, 4), -1.0)
            np.testing.assert_allclose(got[k], expected, atol=1e-6)


def test_enlarging_is_linear_interpolation_with_centres_aligned() -> None:
    hu = np.random.default_rng(0).integers(-900, 900, (6, 7, 8))
    pixels, _ = prepare_volume(_image(hu, (3.0, 2.0, 2.0)), _data((1.5, 1.0, 1.0), (12, 14, 16)))
    axes = [(np.arange(2 * n) + 0.5) / 2 - 0.5 for n in hu.shape]
    where = np.meshgrid(*axes, indexing="ij")
    expected = ndimage.map_coordinates(hu.astype(np.float64), where, order=1, mode="nearest") / 1000
    np.testing.assert_allclose(pixels[0], expected, atol=1e-5)


def test_shrinking_filters_what_the_coarse_grid_cannot_hold() -> None:
    """A checkerboard of the finest pitch averages out; picking single voxels would keep it at full height."""
    board = np.where(np.indices((24, 24, 24)).sum(axis=0) % 2, 800, -800)
    pixels, _ = prepare_volume(_image(board, (1.0, 1.0, 1.0)), _data((4.0, 4.0, 4.0), (6, 6, 6)))
    assert np.abs(pixels[0, 1:-1, 1:-1, 1:-1]).max() < 0.02
    ramp = np.broadcast_to(np.arange(24)[:, None, None] * 10, (24, 24, 24))
    pixels, _ = prepare_volume(_image(ramp, (1.0, 1.0, 1.0)), _data((4.0, 4.0, 4.0), (6, 6, 6)))
    centres = (np.arange(6) + 0.5) * 4 - 0.5
    np.testing.assert_allclose(pixels[0, 1:-1, 3, 3], centres[1:-1] * 10 / 1000, atol=1e-4)


@settings(max_examples=40)
@given(
    shape=st.tuples(*[st.integers(2, 20)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 5.0)] * 3),
    size=st.tuples(*[st.integers(1, 24)] * 3),
    step=st.tuples(*[st.floats(0.4, 5.0)] * 3),
)
def test_a_uniform_volume_stays_uniform_inside_and_padding_is_air(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    size: tuple[int, int, int],
    step: tuple[float, float, float],
) -> None:
    pixels, geometry = prepare_volume(_image(np.full(shape, 500), spacing), _data(step, size))
    values = np.unique(np.round(pixels, 5))
    assert set(values) <= {-1.0, 0.5}
    spans = [max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, step, strict=True)]
    filled = np.prod([min(n, t) for n, t in zip(spans, size, strict=True)])
    assert (np.abs(pixels - 0.5) < 1e-4).sum() == filled
    restored = geometry.restore(np.full((3, 4, 5), 2.5, np.float32))
    assert restored.shape == shape
    np.testing.assert_allclose(restored, 2.5, rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32, 32), (20, 24, 40)])
def test_a_lesion_is_restored_where_it_is(size: tuple[int, int, int]) -> None:
    """Crop, padding and anisotropic spacing in one: the peak of the input's own map lands on the lesion."""
    hu = np.full((40, 60, 50), -900)
    hu[26:30, 20:26, 30:36] = 900
    image = _image(hu, (2.0, 1.0, 1.2))
    pixels, geometry = prepare_volume(image, _data((2.5, 1.5, 1.5), size))
    restored = geometry.restore(pixels[0])
    centre = np.array(ndimage.center_of_mass(restored > 0))
    np.testing.assert_allclose(centre, [27.5, 22.5, 32.5], atol=0.75)


def test_voxels_outside_the_input_take_the_least_value() -> None:
    geometry = VolumeGeometry((10, 4, 4), (1.0, 1.0, 1.0), (4, 4, 4), (1.0, 1.0, 1.0))
    grid = np.random.default_rng(0).random((2, 2, 2), dtype=np.float32)
    restored = geometry.restore(grid)
    np.testing.assert_array_equal(restored[:3], grid.min())
    np.testing.assert_array_equal(restored[7:], grid.min())
    assert restored[3:7].max() > grid.min()


def test_what_does_not_fit_is_refused() -> None:
    film = Image.from_array("film", np.zeros((4, 4), np.uint8), view="frontal", bits=8)
    with pytest.raises(ValueError, match="reads volumes"):
        prepare_volume(film, DataConfig())
    with pytest.raises(ConfigError, match="lower end first"):
        load_config(None, ["data.hu_range=[1000,-1000]"])
    with pytest.raises(ConfigError, match="volume_spacing_mm"):
        load_config(None, ["data.volume_spacing_mm=[1,0,1]"])
