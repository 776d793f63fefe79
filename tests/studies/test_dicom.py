"""Radiographs out of DICOM: lossless values, one polarity, honest windows and spacing, and clear refusals."""

from __future__ import annotations

import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from pydicom import uid
from pydicom.dataset import Dataset

from rayzero.studies.dicom import read_radiograph
from rayzero.studies.errors import StudyFileError
from tests.studies.films import dataset, encode, film_bytes, ramp, view_code


def _real(name: str) -> bytes:
    spec = find_spec("data_store")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pydicom-data is not installed")
    return (Path(spec.submodule_search_locations[0]) / "data" / name).read_bytes()


def _refusal(data: bytes) -> StudyFileError:
    with pytest.raises(StudyFileError) as caught:
        read_radiograph(data)
    return caught.value


def test_real_film_reads_alike_in_both_codings() -> None:
    plain, coded = read_radiograph(_real("RG1_UNCR.dcm")), read_radiograph(_real("RG1_J2KR.dcm"))
    assert plain.sha256 == coded.sha256
    assert (plain.shape, plain.bits, plain.dtype, plain.view) == ((1955, 1841), 15, "uint16", "frontal")
    assert plain.spacing_mm == ()
    assert plain.window == (32767 - 14999.5, 29999)


@pytest.mark.parametrize("bits", [10, 12, 15, 16])
def test_polarity_is_inverted_about_the_stored_range(bits: int) -> None:
    values = ramp(bits)
    straight = read_radiograph(film_bytes(bits))
    inverted = read_radiograph(film_bytes(bits, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(straight.array(), values)
    np.testing.assert_array_equal(inverted.array(), 2**bits - 1 - values.astype(int))
    assert straight.bits == bits


def test_window_follows_the_polarity() -> None:
    image = read_radiograph(film_bytes(PhotometricInterpretation="MONOCHROME1", WindowCenter=1000, WindowWidth=500))
    assert image.window == (4095 - 999.5, 499)


@pytest.mark.parametrize(
    ("centre", "width", "expected"),
    [(["40", "50"], ["100", "200"], (39.5, 99)), (40, 0, ()), (40, -5, ()), (None, None, ()), ("", "", ())],
)
def test_window_is_the_first_that_has_a_width(centre: Any, width: Any, expected: tuple[float, ...]) -> None:
    given = {} if centre is None else {"WindowCenter": centre, "WindowWidth": width}
    assert read_radiograph(film_bytes(**given)).window == expected


def test_rescale_moves_the_window_and_leaves_the_pixels() -> None:
    header = {"RescaleSlope": "0.5", "RescaleIntercept": "200", "WindowCenter": 700, "WindowWidth": 400}
    image = read_radiograph(film_bytes(**header))
    np.testing.assert_array_equal(image.array(), ramp())
    assert image.window == ((699.5 - 200) / 0.5, 399 / 0.5)


def test_negative_slope_cancels_monochrome1() -> None:
    header = {"RescaleSlope": "-1", "RescaleIntercept": "4095", "PhotometricInterpretation": "MONOCHROME1"}
    image = read_radiograph(film_bytes(WindowCenter=1095, WindowWidth=100, **header))
    np.testing.assert_array_equal(image.array(), ramp())
    assert image.window == (4095 - 1094.5, 99)


def test_modality_table_is_applied() -> None:
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [4, 0, 8], "US"
    item.LUTData = [10, 20, 30, 255]
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    pixels = np.array([[0, 1], [2, 3]], np.uint16)
    image = read_radiograph(encode(dataset(pixels, bits=2, ModalityLUTSequence=[item])))
    np.testing.assert_array_equal(image.array(), [[10, 20], [30, 255]])
    assert (image.dtype, image.bits) == ("uint8", 8)


def test_signed_pixels_invert_without_loss() -> None:
    pixels = np.array([[-2048, -1], [0, 2047]], np.int16)
    image = read_radiograph(encode(dataset(pixels, PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_array_equal(image.array(), [[2047, 0], [-1, -2048]])


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
    ],
)
def test_lossless_codings_give_one_checksum(syntax: str) -> None:
    expected = read_radiograph(film_bytes()).sha256
    assert read_radiograph(encode(dataset(ramp()), syntax)).sha256 == expected


def _jpeg(pixels: np.ndarray[Any, Any], **attributes: Any) -> bytes:
    import io

    from pydicom.encaps import encapsulate

    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "JPEG", quality=95)
    film = dataset(pixels, bits=8, **attributes)
    film.PixelData = encapsulate([buffer.getvalue()])
    film["PixelData"].VR = "OB"
    film["PixelData"].is_undefined_length = True
    film.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    return encode(film)


def test_jpeg_baseline_reads_and_a_lying_header_is_refused() -> None:
    pixels = (ramp(8) & 255).astype(np.uint8)
    assert abs(read_radiograph(_jpeg(pixels)).array().astype(int) - pixels).max() < 12
    error = _refusal(_jpeg(pixels, Rows=8))
    assert error.stage == "decode"
    assert "64x96" in error.reason


@pytest.mark.parametrize(
    ("imager", "pixel", "expected"),
    [
        ([0.143, 0.144], [0.2, 0.2], (0.143, 0.144)),
        (None, [0.2, 0.25], (0.2, 0.25)),
        ([0, 0], [0.2, 0.2], (0.2, 0.2)),
        (None, [0, 0], ()),
        (None, None, ()),
    ],
)
def test_spacing_prefers_the_detector_plane(imager: Any, pixel: Any, expected: tuple[float, ...]) -> None:
    given = {"ImagerPixelSpacing": imager, "PixelSpacing": pixel}
    image = read_radiograph(film_bytes(**{name: value for name, value in given.items() if value}))
    assert image.spacing_mm == expected


@pytest.mark.parametrize(
    ("position", "meaning", "view"),
    [
        ("PA", "", "frontal"),
        ("AP", "", "frontal"),
        ("LL", "", "lateral"),
        ("RL", "", "lateral"),
        ("RAO", "", "other"),
        ("", "postero-anterior", "frontal"),
        ("", "left lateral", "lateral"),
        ("??", "", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_view_comes_from_a_table(position: str, meaning: str, view: str) -> None:
    given = {"ViewCodeSequence": view_code(meaning)} if meaning else {}
    assert read_radiograph(film_bytes(ViewPosition=position, **given)).view == view


def test_no_identifying_attribute_reaches_the_image() -> None:
    text = repr(vars(read_radiograph(film_bytes(), image_id="s1/pa")))
    assert not any(secret in text for secret in ("Roe", "4711", "1950", "0815"))


@pytest.mark.parametrize(
    ("attributes", "stage", "words"),
    [
        ({"NumberOfFrames": 3}, "header", "3 frames"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "header", "RGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "header", "PALETTE COLOR"),
        ({"SOPClassUID": uid.CTImageStorage}, "header", "CT Image Storage"),
        ({"Rows": 60000, "Columns": 60000}, "header", "60000x60000"),
        ({"BitsStored": 8, "HighBit": 7}, "pixels", "8 stored bits"),
        ({"HighBit": 14}, "header", "HighBit"),
        ({"RescaleSlope": "0"}, "header", "RescaleSlope"),
        ({"BitsStored": None}, "header", "BitsStored"),
        ({"PixelData": None}, "header", "no pixel data"),
        ({"PixelData": b"\x00" * 10}, "decode", "does not decode"),
    ],
)
def test_what_is_no_radiograph_is_refused_by_name(attributes: dict[str, Any], stage: str, words: str) -> None:
    error = _refusal(film_bytes(**attributes))
    assert error.stage == stage
    assert words in error.reason
    assert "\n" not in error.reason


def test_unsupported_coding_is_named() -> None:
    film = dataset(ramp())
    film.file_meta.TransferSyntaxUID = uid.JPEGLosslessSV1
    film["PixelData"].is_undefined_length = True
    film.PixelData = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    film["PixelData"].VR = "OB"
    error = _refusal(encode(film))
    assert error.stage == "header"
    assert "JPEG Lossless" in error.reason


@pytest.mark.parametrize("data", [b"", b"just some text", b"\x00" * 4000], ids=["empty", "text", "zeros"])
def test_what_is_no_dicom_is_refused(data: bytes) -> None:
    assert _refusal(data).stage == "open"


@pytest.mark.parametrize("keep", [130, 140, 200, 400, 700, 1500])
def test_truncated_files_are_refused(keep: int) -> None:
    data = film_bytes()
    assert keep < len(data)
    assert _refusal(data[:keep]).stage in ("open", "header", "decode")


def test_deflated_bomb_is_refused_before_it_expands() -> None:
    data = encode(dataset(ramp()), uid.DeflatedExplicitVRLittleEndian)
    end = 144 + int.from_bytes(data[140:144], "little")
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(deflater.compress(bytes(2**20)) for _ in range(160)) + deflater.flush()
    assert "expands" in _refusal(data[:end] + bomb).reason
