"""PNG of stored values with their DICOM attributes beside them: read as the DICOM file that they were made from."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from rayzero.studies.errors import StudyFileError
from rayzero.studies.files import read_image
from rayzero.studies.sandbox import Sandbox
from tests.studies.films import dataset, encode, lut, ramp, raster

WINDOWED = {"WindowCenter": 1500, "WindowWidth": 900}
TABLE = lut("VOI", first=0, values=list(range(0, 4096, 16)), bits=12)
LONG_TABLE = lut("VOI", first=0, values=list(range(2**15)), bits=16)


def attributes(**changes: Any) -> str:
    """Those of the film of ``ramp()`` as JSON, without its pixels."""
    film = dataset(ramp(), **changes)
    del film.PixelData
    return film.to_json()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PhotometricInterpretation": "MONOCHROME1", **WINDOWED, "ImagerPixelSpacing": [0.15, 0.15]},
        {"RescaleSlope": -1, "RescaleIntercept": 4095, **WINDOWED},
        {"VOILUTSequence": [TABLE]},
        {"PhotometricInterpretation": "MONOCHROME1", "VOILUTSequence": [LONG_TABLE]},
    ],
    ids=["plain", "inverted", "window", "slope", "table", "inline table"],
)  # fmt: skip
def test_a_png_reads_as_the_film_that_it_was_made_from(changes: dict[str, Any]) -> None:
    film = read_image(encode(dataset(ramp(), **changes)), name="x")
    with Sandbox() as sandbox:
        image = sandbox.read_image(raster(ramp()), name="x", attributes=attributes(**changes))
    assert image == replace(film, view="unknown")
    assert image == read_image(raster(ramp()), name="x", attributes=attributes(**changes))


def test_bits_that_are_not_stated_are_those_of_the_file() -> None:
    given = json.loads(attributes(PhotometricInterpretation="MONOCHROME1"))
    del given["00280101"]
    image = read_image(raster(ramp()), attributes=json.dumps(given))
    assert (image.bits, image.inverted, int(image.array()[0, 0])) == (16, True, 2**16 - 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "its JSON file holds no DICOM attributes"),
        ("7", "its JSON file holds no DICOM attributes"),
        ('{"00280004": "MONOCHROME1"}', "its JSON file holds no DICOM attributes"),
        ("{}", "lacks PhotometricInterpretation"),
        (attributes(PhotometricInterpretation="RGB"), "the pixels are RGB"),
        (attributes(BurnedInAnnotation="YES"), "text in the pixels may identify the patient"),
        (attributes(Rows=65), "are of 65x96 pixels, the image has 64x96"),
        (attributes(BitsStored=10), r"beyond the \[0, 1023\] of 10 stored bits"),
        (attributes(PixelRepresentation=1), "unsigned"),
    ],
)
def test_attributes_that_are_none_or_of_another_image_are_refused(text: str, reason: str) -> None:
    with pytest.raises(StudyFileError, match=reason):
        read_image(raster(ramp()), attributes=text)
