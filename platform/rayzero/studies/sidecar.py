"""Radiographs that were published as PNG, with their DICOM attributes in a JSON file beside them.

Such a PNG holds the stored values of the DICOM file, and looks as it should by its attributes alone: which end is
black, and which values are shown. They are in the DICOM JSON model (PS3.18, annex F): ``{"00280004": {"vr": "CS",
"Value": ["MONOCHROME1"]}, ...}``.
"""

from __future__ import annotations

import json
import warnings

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from rayzero.errors import first_line
from rayzero.studies.dicom import ATTRIBUTES, check_picture, spacing_of
from rayzero.studies.display import to_display
from rayzero.studies.errors import StudyFileError
from rayzero.studies.study import Image

_TAGS = tuple(f"{tag_for_keyword(name):08X}" for name in ATTRIBUTES if name != "PixelData")


def with_attributes(image: Image, text: str) -> Image:
    """``image``, a PNG's stored values (H, W), with air dark and the window and spacing that the JSON ``text`` states.

    No other attribute is parsed than those of a DICOM radiograph. Raises StudyFileError where the attributes say
    nothing of polarity, or are of another image than this one.
    """
    dataset = _parse(text)
    if not dataset.get("PhotometricInterpretation"):
        raise StudyFileError("header", "its JSON file lacks PhotometricInterpretation, which says what is black")
    check_picture(dataset)
    rows, columns = image.shape
    size = (int(dataset.get("Rows") or rows), int(dataset.get("Columns") or columns))
    if size != image.shape:
        stated, seen = ("x".join(map(str, extents)) for extents in (size, image.shape))
        raise StudyFileError("header", f"its DICOM attributes are of {stated} pixels, the image has {seen}")
    bits = int(dataset.get("BitsStored") or image.bits)
    if int(dataset.get("PixelRepresentation") or 0) or not 1 <= bits <= image.bits:
        reason = f"its DICOM attributes are of other values than the {image.bits} bits, unsigned, of the image"
        raise StudyFileError("header", reason)
    dataset.BitsStored = bits
    found = to_display(image.array(), dataset)
    return Image.from_array(
        image.image_id,
        found.pixels,
        view=image.view,
        bits=found.bits,
        spacing_mm=spacing_of(dataset),
        window=found.window,
        curve=found.curve,
        inverted=found.inverted,
    )


def _parse(text: str) -> Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = json.loads(text)
            dataset = Dataset.from_json({tag: given[tag] for tag in _TAGS if tag in given})
            dataset.set_original_encoding(is_implicit_vr=False, is_little_endian=True)  # of inline tables
            for element in dataset:
                _ = element.value
    except Exception as error:  # a stranger's file: json and pydicom raise many types
        raise StudyFileError("header", f"its JSON file holds no DICOM attributes ({first_line(error)})") from error
    return dataset
