"""Radiographs out of DICOM: lossless values, one polarity, honest windows and spacing, and clear refusals."""

from __future__ import annotations

import io
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag

from rayzero.studies.codecs import decode
from rayzero.studies.dicom import ATTRIBUTES, read_radiograph
from rayzero.studies.display import MAX_CURVE
from rayzero.studies.errors import StudyFileError
from rayzero.studies.headers import read_headers
from rayzero.studies.preprocess import to_unit
from tests.studies.films import dataset, encode, film_bytes, lossy_syntaxes, lut, ramp, syntaxes, view_code


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
def test_trap_01_polarity_is_inverted_about_the_stored_range(bits: int) -> None:
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
def test_trap_02_window_is_the_first_that_has_a_width(centre: Any, width: Any, expected: tuple[float, ...]) -> None:
    given = {} if centre is None else {"WindowCenter": centre, "WindowWidth": width}
    assert read_radiograph(film_bytes(**given)).window == expected


def _shown(**header: Any) -> np.ndarray[Any, Any]:
    """The display values of a 12-bit ramp, by the library's own path."""
    return to_unit(read_radiograph(film_bytes(**header)), "voi")


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("slope", ["1", "0.5", "-2"])
def test_windows_show_what_the_standard_says(polarity: str, function: str, slope: str) -> None:
    """Against PS3.3, C.11.2.1.2 and C.11.2.1.3, evaluated in float64 on modality values."""
    centre, width = 900.0, 700.0
    header = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
    shown = _shown(RescaleSlope=slope, RescaleIntercept="30", PhotometricInterpretation=polarity, **header)
    value = ramp().astype(np.float64) * float(slope) + 30
    if function == "SIGMOID":
        expected = 1 / (1 + np.exp(-4 * (value - centre) / width))
    elif function == "LINEAR_EXACT":
        expected = np.clip((value - centre) / width + 0.5, 0, 1)
    else:
        expected = np.clip((value - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    expected = 1 - expected if polarity == "MONOCHROME1" else expected
    # What falls with the stored value is mirrored in the store, so the display is the same either way.
    np.testing.assert_allclose(shown, expected, atol=1e-5)


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("slope", ["1", "-1"])
def test_voi_tables_show_their_entries(polarity: str, falling: bool, slope: str) -> None:
    entries = (1023 * np.linspace(0, 1, 2000) ** 2).astype(int)
    entries = entries[::-1] if falling else entries
    intercept = "0" if slope == "1" else "4095"
    table = lut("VOI", first=500, values=entries.tolist(), bits=10)
    header = {"RescaleSlope": slope, "RescaleIntercept": intercept, "WindowCenter": 1, "WindowWidth": 2}
    shown = _shown(VOILUTSequence=[table], PhotometricInterpretation=polarity, **header)
    value = ramp().astype(int) * int(slope) + int(intercept)
    expected = entries[np.clip(value - 500, 0, 1999)] / 1023
    expected = 1 - expected if polarity == "MONOCHROME1" else expected
    np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_long_tables_are_resampled() -> None:
    entries = np.linspace(0, 65535, 2**16).astype(int)
    table = lut("VOI", first=0, values=entries.tolist(), bits=16)
    table.LUTDescriptor = [0, 0, 16]
    image = read_radiograph(film_bytes(16, VOILUTSequence=[table]))
    assert len(image.curve) == MAX_CURVE
    np.testing.assert_allclose(to_unit(image, "voi"), ramp(16) / 65535, atol=1e-4)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"VOILUTFunction": "CUBIC", "WindowCenter": 5, "WindowWidth": 9}, "CUBIC"),
        ({"VOILUTSequence": [lut("VOI", first=0, values=[5000, 1], bits=12)]}, "VOI LUT"),
        ({"VOILUTSequence": [Dataset()]}, "VOI LUT"),
    ],
)
def test_displays_that_make_no_sense_are_refused(header: dict[str, Any], words: str) -> None:
    assert words in _refusal(film_bytes(**header)).reason


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


@pytest.mark.parametrize("syntax", syntaxes(), ids=lambda syntax: uid.UID(syntax).name)
def test_lossless_codings_give_one_checksum(syntax: str) -> None:
    expected = read_radiograph(film_bytes()).sha256
    assert read_radiograph(encode(dataset(ramp()), syntax)).sha256 == expected


@pytest.mark.parametrize("syntax", syntaxes(), ids=lambda syntax: uid.UID(syntax).name)
def test_lossless_codings_keep_eight_bits(syntax: str) -> None:
    if syntax == uid.ExplicitVRBigEndian:
        pytest.skip("bytes have no order")
    pixels = ramp(8).astype(np.uint8)
    np.testing.assert_array_equal(read_radiograph(encode(dataset(pixels, bits=8), syntax)).array(), pixels)


@pytest.mark.parametrize(
    ("syntax", "bits", "error"), zip(lossy_syntaxes(), (8, 12, 12, 12), (6, 60, 2, 16), strict=True)
)
def test_lossy_codings_come_near(syntax: str, bits: int, error: int) -> None:
    pixels = ramp(bits).astype(np.uint8 if bits == 8 else np.uint16)
    read = read_radiograph(encode(dataset(pixels, bits=bits), syntax)).array()
    assert abs(read.astype(int) - pixels).max() <= error


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_real_twelve_bit_jpeg_decodes(name: str) -> None:
    film = pydicom.dcmread(get_testdata_file(name, download=False))
    pixels = decode(film)
    assert (pixels.shape, pixels.dtype) == ((1024, 256), np.uint16)
    assert pixels.max() == 264


def test_real_lossless_jpeg_decodes() -> None:
    film = pydicom.dcmread(io.BytesIO(_real("JPEG-LL.dcm")))
    assert (decode(film).shape, int(decode(film).max())) == ((1024, 256), 278)


@pytest.mark.parametrize(
    "syntax", [uid.JPEGBaseline8Bit, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless]
)
def test_a_lying_header_is_refused_before_decoding(syntax: str) -> None:
    film = dataset(ramp(8).astype(np.uint8), bits=8)
    data = encode(film, syntax)
    small = bytearray(data)
    position = small.find(b"\x28\x00\x10\x00US\x02\x00") + 8
    small[position : position + 2] = (8).to_bytes(2, "little")
    error = _refusal(bytes(small))
    assert error.stage == "decode"
    assert "the coded image is 64x96, the header says 8x96" in error.reason


@pytest.mark.parametrize(
    ("imager", "pixel", "expected"),
    [
        ([0.143, 0.144], [0.2, 0.2], (0.143, 0.144)),
        (None, [0.2, 0.25], (0.2, 0.25)),
        ([0, 0], [0.2, 0.2], (0.2, 0.2)),
        (None, [0, 0], ()),
        ([143, 143], [0.2, 0.2], (0.2, 0.2)),
        ([0.143], None, ()),
        (None, None, ()),
    ],
)
def test_trap_02_spacing_prefers_the_detector_plane(imager: Any, pixel: Any, expected: tuple[float, ...]) -> None:
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


def test_no_attribute_that_is_parsed_identifies_anyone() -> None:
    """Against the attributes that the Basic Application Level Confidentiality Profile treats (PS3.15, E.1-1)."""
    profile = pytest.importorskip("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    treated = {tag for name in dir(profile) if name.endswith("_TAGS") for tag in getattr(profile, name)}
    assert len(treated) > 400
    assert (0x0010, 0x0010) in treated
    allowed = {Tag(tag_for_keyword(name)) for name in ATTRIBUTES}
    assert not {(tag.group, tag.element) for tag in allowed} & {tuple(tag[:2]) for tag in treated}


def test_text_in_the_pixels_is_refused() -> None:
    assert "BurnedInAnnotation" in _refusal(film_bytes(BurnedInAnnotation="YES")).reason
    assert read_radiograph(film_bytes(BurnedInAnnotation="NO")).shape == (64, 96)


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


def test_what_a_damaged_length_swallowed_is_not_repeated() -> None:
    swallowed = "1.2.840.10008.5.1.4.1.1.1\x10\x00PN\x0cRoe^Richard"
    for values in ({"SOPClassUID": swallowed}, {"PhotometricInterpretation": "RGB \x10\x00Roe^Ric"}):
        with pytest.raises(StudyFileError, match="unreadable") as refused:
            read_radiograph(film_bytes(**values))
        assert "Roe" not in refused.value.reason


def test_unsupported_coding_is_named() -> None:
    film = dataset(ramp())
    film.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    film.PixelData = encapsulate([b"no film"])
    film["PixelData"].VR, film["PixelData"].is_undefined_length = "OB", True
    error = _refusal(encode(film))
    assert error.stage == "header"
    assert "MPEG2" in error.reason


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
    # The length of the header's first group does not hide what follows it: not when it is absent, nor when it lies.
    assert "expands" in _refusal(data[:132] + data[144:end] + bomb).reason
    assert "expands" in _refusal(data[:140] + bytes(4) + data[144:end] + bomb).reason


def test_a_deflated_film_reads_without_the_length_of_its_first_group() -> None:
    data = encode(dataset(ramp()), uid.DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(read_radiograph(data[:132] + data[144:]).array(), ramp())


def test_what_a_library_says_of_a_damaged_header_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("could not convert string to float: 'Roe^Richard'")

    monkeypatch.setattr(pydicom, "dcmread", broken)
    with pytest.raises(StudyFileError, match=r"damaged or cut short \(ValueError\)") as caught:
        read_radiograph(film_bytes())
    assert "Roe" not in caught.value.reason


def test_a_header_whose_element_has_no_json_names_it_and_not_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("Roe^Richard")

    data = film_bytes(StudyInstanceUID="1.2.8", SeriesInstanceUID="1.2.9")
    monkeypatch.setattr(pydicom.DataElement, "to_json_dict", broken)
    with pytest.raises(StudyFileError, match="SOPClassUID does not hold") as caught:
        read_headers(data)
    assert "Roe" not in caught.value.reason
