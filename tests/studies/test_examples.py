"""Study examples: a frontal radiograph with its lateral and its prior, wherever the prior lies in the lake."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayzero.config import DataConfig
from rayzero.studies.examples import EXAMPLES, examples_of, stacked, stacked_pixels, with_features
from rayzero.studies.lake import open_lake, write_lake
from rayzero.studies.loading import lake_source, read_examples
from rayzero.studies.study import Image, Sentence, Study, View

STUDY = DataConfig(input="study", intensity="minmax")


def image(name: str, view: View, value: int) -> Image:
    # A ramp up to 255, and one block of the value that tells the image apart.
    pixels = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    pixels[:, :] = np.where(np.arange(64) < 60, value, np.arange(64) * 4)
    pixels[0, 0], pixels[0, 1] = 0, 255
    data = pixels.tobytes()
    digest = hashlib.sha256(data).hexdigest()
    return Image(image_id=name, view=view, pixels=data, dtype="uint8", shape=(64, 64), bits=8, sha256=digest)


def study(name: str, images: tuple[Image, ...], prior: str | None = None, split: str = "train") -> Study:
    return Study(
        study_id=name,
        patient_id="p",
        corpus="toy",
        split=split,
        images=images,
        prior_study_id=prior,  # type: ignore[arg-type]
    )


@pytest.fixture
def lake_url(tmp_path: Path) -> str:
    filler = [study(f"f{i}", (image(f"f{i}", "frontal", 1),)) for i in range(40)]
    prior = study("s1", (image("a", "frontal", 50), image("b", "lateral", 100)), split="validation")
    current = study("s2", (image("c", "frontal", 150), image("d", "lateral", 200)), prior="s1")
    gone = study("s3", (image("e", "frontal", 20),), prior="never-ingested")
    write_lake(str(tmp_path / "lake"), [*filler, current, gone, prior])
    return str(tmp_path / "lake")


def centre(pixels: np.ndarray) -> list[int]:  # type: ignore[type-arg]
    return [round(float(view[0, 16, 8]) * 255) for view in pixels]


def test_a_study_comes_with_its_lateral_and_its_prior(lake_url: str) -> None:
    lake = open_lake(lake_url)
    source = lake_source(lake, "train", STUDY, 32)
    assert set(source.priors) == {"s1"}
    tables = [read_examples(source, group) for group in source.row_groups]
    rows = {row["study_id"]: index for table in tables for index, row in enumerate(table.to_pylist())}
    last = tables[-1]
    assert last.column("present").to_pylist()[rows["s2"]] == [True, True, True, True]
    assert centre(stacked(last)[rows["s2"]]) == pytest.approx([150, 200, 50, 100], abs=1)
    # A prior that is in no lake is an absent view, and so is a lateral that was never taken.
    assert last.column("present").to_pylist()[rows["s3"]] == [True, False, False, False]
    assert stacked(last).shape[1:] == (4, 1, 32, 32)
    assert not stacked(last)[rows["s3"]][1:].any()


def test_companions_can_be_left_out(lake_url: str) -> None:
    data = DataConfig(input="study", companions=("lateral",))
    source = lake_source(open_lake(lake_url), "train", data, 32)
    last = read_examples(source, source.row_groups[-1])
    assert last.column("present").to_pylist()[-2:] == [[True, True, False, False], [True, False, False, False]]


def test_features_can_keep_their_pixels(lake_url: str) -> None:
    source = lake_source(open_lake(lake_url), "train", STUDY, 32)
    examples = read_examples(source, source.row_groups[0])
    features = np.random.default_rng(0).normal(size=(examples.num_rows, 4, 3, 2)).astype(np.float16)
    kept = with_features(examples, features.astype(np.float32), keep_pixels=True)
    assert kept.schema.equals(EXAMPLES)
    np.testing.assert_array_equal(stacked(kept), features.astype(np.float32))
    np.testing.assert_array_equal(stacked_pixels(kept), stacked(examples))
    assert stacked_pixels(with_features(examples, features.astype(np.float32), keep_pixels=False)) is None


def test_a_study_whose_statuses_are_left_out_is_said_to_be_normal() -> None:
    edema = Sentence(text="There is edema", status="present", finding="edema")
    hernia = Sentence(text="There is no hernia", status="absent", finding="hernia")
    data = DataConfig(statuses=("present", "uncertain"))

    def texts(*sentences: Sentence) -> list[str]:
        one = replace(study("s", (image("a", "frontal", 50),)), sentences=sentences)
        row: list[str] = examples_of([one], data, 64, lambda _: None).column("sentences").to_pylist()[0]
        return row

    assert texts(edema, hernia) == ["There is edema"]
    # Its own "There is no hernia" would teach that hernia looks normal.
    assert texts(hernia) == ["There is no acute cardiopulmonary abnormality"]
    assert texts() == []
