"""Augmentation: what is drawn, when nothing is mirrored, and each operation against a plain reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from rayzero.config import AugmentationConfig, DataConfig
from rayzero.reports.locations import names_a_side
from rayzero.studies import lake as lakes
from rayzero.studies.augmentation import Augmentation, Draw, Float, affine, crop, jitter
from rayzero.studies.examples import stacked
from rayzero.studies.lake import open_lake, write_lake
from rayzero.studies.loading import Source, _read_window, lake_source, plan, read_examples
from rayzero.studies.study import Image, Report, Sentence, Study
from tests.toys import toy_lake, toy_study

STILL = Draw((0.0, 0.0), 0.0, (0.0, 0.0), 1.0, 0.0, 1.0, 1.0)
EVERYTHING = AugmentationConfig(
    crop=0.8, flip=0.5, rotation=30, shear=10, translation=0.1, scale=(0.9, 1.1), brightness=(0.8, 1.2),
    contrast=(0.8, 1.2),
)  # fmt: skip


def smooth(side: int = 64) -> Float:
    """A film without edges, on which interpolations agree."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((side, side)), 3)
    film: Float = ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)
    return film


def study(*texts: str, report: str = "") -> Study:
    said = tuple(Sentence(text=text, status="present", finding="edema") for text in texts)
    return replace(toy_study(0, "train"), sentences=said, report=Report(text=report))


def flipped(one: Study, data: DataConfig, epochs: int = 8) -> set[bool]:
    """Whether ``one`` is mirrored in some epoch, and whether not."""
    ramp = np.arange(32, dtype=np.float32)[None, None].repeat(32, axis=1)
    found = set()
    for epoch in range(epochs):
        out = Augmentation(data, seed=1, epoch=epoch)(one, "a", ramp, [], 32)
        assert np.array_equal(out, ramp) or np.array_equal(out, ramp[..., ::-1])
        found.add(not np.array_equal(out, ramp))
    return found


@pytest.mark.parametrize(
    "text",
    [
        "There is a nodule in the right upper lobe",
        "There is no left-sided pleural effusion",
        "Left greater than right bibasilar atelectasis",
        "There is opacity in the RLL",
        "RT PICC tip in the SVC",
        "Small L pleural effusion",
        "Effusions, R>L",
        "There is atelectasis in the lingula",
        "Middle lobe collapse",
        "Fluid in the minor fissure",
        "There is an azygos lobe",
        "There is dextrocardia",
        "Mild levoscoliosis",
        "Situs inversus totalis",
        "derram pleural izquierd",
        "infiltr lobul superior derech",
        "atelectasia en LSD",
    ],
)
def test_a_study_that_names_a_side_is_never_mirrored(text: str) -> None:
    data = DataConfig(augmentation=AugmentationConfig(flip=1.0))
    assert flipped(study("There is edema", text), data) == {False}
    # Its location alone tells, too.
    placed = replace(study("There is edema"), sentences=(replace(study("A nodule").sentences[0], location=text),))
    assert flipped(placed, data) == {False}


@pytest.mark.parametrize(
    "text",
    [
        "There is edema",
        "There is no bilateral pleural effusion",
        "There is opacity in both lung bases",
        "Chest pain, r/o pneumonia",
        "There is cardiomegaly",
        "There is a fracture of L1",
        "lesion in the lower lung zones",
        "no hay derrame pleural",
        "cardiomegali moder",
    ],
)
def test_a_study_that_names_no_side_is(text: str) -> None:
    assert not names_a_side(text)
    assert flipped(study(text), DataConfig(augmentation=AugmentationConfig(flip=1.0))) == {True}
    assert flipped(study(text), DataConfig(augmentation=AugmentationConfig(flip=0.5)), 24) == {True, False}
    assert flipped(study(text), DataConfig()) == {False}


def test_the_report_counts_where_it_is_what_is_aligned() -> None:
    settings = AugmentationConfig(flip=1.0)
    one = study("There is edema", report="Edema. Left lateral view.")
    assert flipped(one, DataConfig(augmentation=settings)) == {True}
    assert flipped(one, DataConfig(augmentation=settings, texts="report")) == {False}


def test_a_volume_is_mirrored_along_x_by_the_same_rule() -> None:
    data = DataConfig(input="volume", augmentation=AugmentationConfig(flip=1.0))
    volume = np.random.default_rng(0).random((1, 3, 4, 5)).astype(np.float32)
    change = Augmentation(data, seed=0, epoch=0)
    np.testing.assert_array_equal(change(study("There is edema"), "ct", volume, [], 0), volume[..., ::-1])
    np.testing.assert_array_equal(change(study("Nodule in the lingula"), "ct", volume, [], 0), volume)


def test_the_views_of_a_study_are_changed_together() -> None:
    data = DataConfig(input="study", augmentation=EVERYTHING)
    views = np.stack([smooth(40)[None]] * 4)
    views[3] = 0
    present = [True, True, True, False]
    kinds = set()
    for epoch in range(16):
        change = Augmentation(data, seed=0, epoch=epoch)
        out = change(study("There is edema"), "a", views, present, 32)
        assert out.shape == (4, 1, 32, 32)
        # Frontal and prior frontal alike, the lateral in its own way, the absent view nothing at all.
        np.testing.assert_array_equal(out[0], out[2])
        assert np.abs(out[0] - out[1]).max() > 0.01
        assert not out[3].any()
        only_flip = Augmentation(
            DataConfig(input="study", augmentation=AugmentationConfig(flip=0.5)), seed=0, epoch=epoch
        )(study("There is edema"), "a", views, present, 40)
        mirrored = [not np.array_equal(one, two) for one, two in zip(only_flip[:3], views[:3], strict=True)]
        assert len(set(mirrored)) == 1
        kinds.add(mirrored[0])
    assert kinds == {True, False}
    # Two radiographs of one study are two examples, which flip together as well.
    radiographs = DataConfig(augmentation=AugmentationConfig(flip=0.5))
    for epoch in range(8):
        change = Augmentation(radiographs, seed=0, epoch=epoch)
        pa, lateral = (change(study("There is edema"), name, views[0], [], 40) for name in ("pa", "lateral"))
        np.testing.assert_array_equal(pa, lateral)


@pytest.mark.parametrize(
    "draw",
    [
        replace(STILL, angle=30.0),
        replace(STILL, shear=-10.0),
        replace(STILL, scale=1.1),
        replace(STILL, shift=(0.1, -0.05)),
        Draw((0.0, 0.0), -17.0, (0.03, 0.07), 0.93, 8.0, 1.0, 1.0),
    ],
)
def test_an_affine_map_is_that_of_scipy(draw: Draw) -> None:
    plane = smooth()
    angle = np.radians(draw.angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[1, np.tan(np.radians(draw.shear))], [0, 1]]) * draw.scale
    # scipy counts rows first, from pixel centres.
    back = np.linalg.inv(forward)[::-1, ::-1]
    centre = np.full(2, (len(plane) - 1) / 2)
    shift = np.array(draw.shift)[::-1] * len(plane)
    expected = ndimage.affine_transform(plane, back, centre - back @ (centre + shift), order=1)
    found = affine(plane, draw)
    # Away from the border, where the two fade into the outside differently.
    inside = ndimage.affine_transform(np.pad(np.ones((60, 60)), 2), back, centre - back @ (centre + shift), order=0) > 0
    inside = ndimage.binary_erosion(inside, iterations=2)
    assert inside.mean() > 0.4
    np.testing.assert_allclose(found[inside], expected[inside], atol=2e-3)
    outside = ndimage.affine_transform(np.ones_like(plane), back, centre - back @ (centre + shift), order=0) == 0
    outside = ndimage.binary_erosion(outside, iterations=2)
    assert not found[outside].any()


def test_crops_are_whole_pixels_from_everywhere() -> None:
    plane = smooth(40)
    seen = set()
    for top in range(9):
        for left in range(9):
            part = crop(plane, ((top + 0.5) / 9, (left + 0.5) / 9), 32)
            np.testing.assert_array_equal(part, plane[top : top + 32, left : left + 32])
            seen.add(part.tobytes())
    assert len(seen) == 81
    assert crop(plane, (0.999999, 0.999999), 40) is not None
    np.testing.assert_array_equal(crop(plane, (0.7, 0.7), 40), plane)


def test_jitter_is_its_formula() -> None:
    plane = smooth()
    bright = np.clip(plane.astype(np.float64) * 1.15, 0, 1)
    expected = np.clip(bright.mean() + 0.8 * (bright - bright.mean()), 0, 1)
    np.testing.assert_allclose(jitter(plane, replace(STILL, brightness=1.15, contrast=0.8)), expected, atol=1e-6)
    assert jitter(plane, STILL) is plane
    assert affine(plane, STILL) is plane


def pixels_of(source: Source, *, rank: int, world_size: int, skip: int, rows: int) -> list[tuple[str, bytes]]:
    """Study and pixels of the examples that a process streams, by the code that Ray Data's tasks run."""
    found: list[tuple[str, bytes]] = []
    for window in plan(source, rank=rank, world_size=world_size, seed=5, skip=skip, rows=rows):
        table = _read_window(source, window)
        images = stacked(table)
        found += [
            (str(name), image.tobytes()) for name, image in zip(table["study_id"].to_pylist(), images, strict=True)
        ]
    return found[:rows]


def test_draws_depend_on_seed_epoch_and_image_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lakes, "GROUP_STUDIES", 4)
    lake = toy_lake(str(tmp_path / "lake"), train=16, validation=4, test=0)
    data = DataConfig(augmentation=EVERYTHING, shuffle_window=8)
    source = lake_source(lake, "train", data, 32, with_text=True)
    assert len(source.row_groups) >= 4
    alone = pixels_of(source, rank=0, world_size=1, skip=0, rows=32)
    first, second = dict(alone[:16]), dict(alone[16:])
    assert first.keys() == second.keys()
    # Another epoch, other draws of every image.
    assert all(first[name] != second[name] for name in first)
    # Two workers see each image as one worker would.
    shared = [p for rank in range(2) for p in pixels_of(source, rank=rank, world_size=2, skip=0, rows=8)]
    assert dict(shared) == first
    # Resumed in the middle of an epoch, and of a window.
    assert pixels_of(source, rank=0, world_size=1, skip=5, rows=27) == alone[5:]
    other = Augmentation(data, seed=6, epoch=0)
    one = read_examples(source, source.row_groups[0], other)
    name = one["study_id"].to_pylist()[0]
    assert stacked(one)[0].tobytes() != first[name]


def test_validation_is_never_changed(tmp_path: Path) -> None:
    lake = toy_lake(str(tmp_path / "lake"), train=4, validation=4, test=0)
    plain = lake_source(lake, "validation", DataConfig(), 32)
    source = lake_source(lake, "validation", DataConfig(augmentation=EVERYTHING), 32)
    expected = stacked(read_examples(plain, plain.row_groups[0]))
    np.testing.assert_array_equal(stacked(read_examples(source, source.row_groups[0])), expected)
    assert sorted(pixels_of(source, rank=0, world_size=1, skip=0, rows=4)) == sorted(
        pixels_of(plain, rank=0, world_size=1, skip=0, rows=4)
    )


def test_a_random_crop_is_of_the_whole_film_and_the_centred_one_of_everything_else(tmp_path: Path) -> None:
    source = lake_source(toy_lake(str(tmp_path / "lake"), train=4), "train", DataConfig(crop=0.5), 16)
    whole = stacked(read_examples(replace(source, data=DataConfig(), resolution=32), source.row_groups[0]))
    np.testing.assert_array_equal(stacked(read_examples(source, source.row_groups[0])), whole[..., 8:24, 8:24])
    seen = {}
    for name, settings in (("random", AugmentationConfig(crop=0.5)), ("centred", AugmentationConfig(scale=(1, 1)))):
        data = DataConfig(crop=0.5, augmentation=settings)
        some = read_examples(replace(source, data=data), source.row_groups[0], Augmentation(data, seed=0, epoch=0))
        seen[name] = stacked(some)
    np.testing.assert_array_equal(seen["centred"], whole[..., 8:24, 8:24])
    for image, film in zip(seen["random"], whole, strict=True):
        places = [
            (y, x) for y in range(17) for x in range(17) if np.array_equal(image[0], film[0, y : y + 16, x : x + 16])
        ]
        assert places
    assert not np.array_equal(seen["random"], seen["centred"])


def test_a_marked_side_stays_where_the_text_says(tmp_path: Path) -> None:
    """Through a lake: studies with a bright left half, half of them with a text that says so."""
    film = np.zeros((64, 64), np.uint8)
    film[:, 32:] = 200
    film[0, 0] = 255

    def marked(index: int) -> Study:
        said = "There is opacity in the left lung" if index % 2 else "There is opacity"
        image = Image.from_array(f"{index}/pa", film, view="frontal", bits=8)
        sentence = Sentence(text=said, status="present", finding="opacity")
        return replace(toy_study(index, "train"), images=(image,), sentences=(sentence,), regions=())

    write_lake(str(tmp_path / "lake"), [marked(index) for index in range(12)])
    data = DataConfig(intensity="minmax", augmentation=AugmentationConfig(flip=1.0))
    source = lake_source(open_lake(str(tmp_path / "lake")), "train", data, 32)
    for window in plan(source, rank=0, world_size=1, seed=0, skip=0, rows=12):
        table = _read_window(source, window)
        for said, image in zip(table["sentences"].to_pylist(), stacked(table), strict=True):
            right_half_bright = image[0, 16, 24] > image[0, 16, 8]
            assert right_half_bright == ("left" in said[0])
