"""Volumes of every format become the same HU on the same axes, and what cannot be trusted is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid

from rayzero.studies import voxels
from rayzero.studies.errors import StudyFileError
from rayzero.studies.kinds import is_volume
from rayzero.studies.lake import write_lake
from rayzero.studies.study import Image, Mask, Region, Study, from_row, to_row
from rayzero.studies.volumes import read_volume
from rayzero.studies.voxels import VolumeHeader
from tests.studies.scans import AFFINE, SHAPE, SPACING, chest, nifti_bytes, npz_bytes, series, slice_bytes, zipped

HEADER = VolumeHeader(axes=((0, 0, 1), (0, 1, 0), (1, 0, 0)), spacing_mm=SPACING)


def _assert_chest(image: Image) -> None:
    np.testing.assert_array_equal(image.array(), chest())
    assert (image.view, image.dtype, image.bits) == ("volume", "int16", 16)
    assert image.spacing_mm == pytest.approx(SPACING)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_nifti_reads(compressed: bool, version: int) -> None:
    data = nifti_bytes(chest(), zipped=compressed, version=version)
    assert is_volume(data)
    _assert_chest(read_volume(data))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product([1, -1], repeat=3)))
def test_any_of_the_48_orientations_becomes_one(order: tuple[int, ...], flips: tuple[int, ...]) -> None:
    """The array is turned and its affine with it: the anatomy stays where it was."""
    turned = chest()[:: flips[0], :: flips[1], :: flips[2]].transpose(order)
    signed = AFFINE[:3, :3] * np.array(flips[::-1])
    affine = np.eye(4)
    # Column i of a NIfTI affine belongs to the last axis of our arrays.
    affine[:3, :3] = signed[:, [2 - order[2 - i] for i in range(3)]]
    _assert_chest(read_volume(nifti_bytes(turned, affine)))


@pytest.mark.parametrize(("units", "scale"), [("mm", 1.0), ("meter", 1e-3), ("micron", 1e3), ("unknown", 1.0)])
def test_units_of_length_become_millimetres(units: str, scale: float) -> None:
    affine = AFFINE.copy()
    affine[:3, :3] *= scale
    assert read_volume(nifti_bytes(chest(), affine, units=units)).spacing_mm == pytest.approx(SPACING)


def test_the_files_own_scale_is_applied() -> None:
    stored = chest() + np.int16(1024)
    _assert_chest(read_volume(nifti_bytes(stored, scl_slope=1.0, scl_inter=-1024.0)))
    halves = read_volume(nifti_bytes(chest().astype(np.float64) / 2, scl_slope=2.0, scl_inter=0.0))
    _assert_chest(halves)


@pytest.mark.parametrize("dtype", ["int32", "float32", "float64", ">i2"])
def test_number_types_become_int16(dtype: str) -> None:
    _assert_chest(read_volume(nifti_bytes(chest().astype(dtype))))


def test_a_table_stands_in_for_a_wrong_header() -> None:
    data = nifti_bytes(chest() + np.int16(1024), np.eye(4), sform_code=0, qform_code=0)
    with pytest.raises(StudyFileError, match="no orientation"):
        read_volume(data)
    header = VolumeHeader(axes=HEADER.axes, spacing_mm=SPACING, intercept=-1024.0)
    _assert_chest(read_volume(data, header=header))
    with pytest.raises(StudyFileError, match="applied twice"):
        read_volume(nifti_bytes(chest(), scl_slope=2.0, scl_inter=0.0), header=header)


def test_a_series_is_ordered_by_position() -> None:
    files = series(chest())
    _assert_chest(read_volume(zipped(files)))
    nested = {f"study/1/{name}": data for name, data in files.items()}
    litter = {"DICOMDIR": b"index", "__MACOSX/._001.dcm": b"x", "study/.DS_Store": b"x"}
    _assert_chest(read_volume(zipped(nested | litter)))


def test_a_series_that_runs_to_the_feet_or_faces_down_is_turned() -> None:
    down = {
        f"{k}.dcm": slice_bytes(chest()[:, ::-1, ::-1], k, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
        for k in range(SHAPE[0])
    }
    _assert_chest(read_volume(zipped(down)))


def test_a_compressed_series_reads() -> None:
    from tests.studies.films import encode
    from tests.studies.scans import slice_dataset

    files = {f"{k}": encode(slice_dataset(chest(), k), uid.RLELossless) for k in range(SHAPE[0])}
    _assert_chest(read_volume(zipped(files)))


def test_each_slice_has_its_own_rescale() -> None:
    stored = [(chest()[k].astype(np.int32) + 1024).astype("<u2") for k in range(SHAPE[0])]
    files = {
        f"{k}": slice_bytes(
            chest(), k, RescaleSlope=0.5, RescaleIntercept=-1024 + 10 * k, PixelData=stored[k].tobytes()
        )
        for k in range(SHAPE[0])
    }
    got = read_volume(zipped(files)).array()
    for k in range(SHAPE[0]):
        np.testing.assert_array_equal(got[k], np.rint(stored[k] * 0.5 - 1024 + 10 * k))


def _changed(name: str, k: int, **attributes: Any) -> dict[str, bytes]:
    files = {f"{n}": slice_bytes(chest(), n) for n in range(SHAPE[0])}
    return {**files, name: slice_bytes(chest(), k, **attributes)}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({k: v for k, v in _changed("0", 0).items() if k != "3"}, "slices are missing"),
        (_changed("copy", 2), "one place"),
        (_changed("2", 2, SeriesInstanceUID="9.9"), r"2 series \(5, 1 slices\)"),
        (_changed("2", 2, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "differ in orientation"),
        (_changed("2", 2, PixelSpacing=[1, 1]), "differ in pixel spacing"),
        (_changed("2", 2, SOPClassUID=uid.MRImageStorage), "MR Image Storage, not a CT slice"),
        (_changed("2", 2, RescaleIntercept=None), "lacks RescaleIntercept"),
        (_changed("2", 2, RescaleType="US"), "RescaleType is US"),
        (_changed("2", 2, ImagePositionPatient=[1, 2]), "3 numbers"),
        ({**_changed("0", 0), "notes.txt": b"hello"}, r"notes\.txt: not a DICOM file"),
        ({"0": slice_bytes(chest(), 0)}, "1 DICOM files make no volume"),
        (
            {f"{k}": slice_bytes(chest(), k, ImagePositionPatient=[0, k * 0.8, k * 2.5]) for k in range(SHAPE[0])},
            "sheared",
        ),
        (
            {f"{k}": slice_bytes(chest(), k, ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6],
                                 ImagePositionPatient=[0, -0.6 * k, 0.8 * k]) for k in range(SHAPE[0])},
            "oblique by 37 degrees",
        ),
    ],
)  # fmt: skip
def test_a_series_that_is_no_volume_is_refused(files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(StudyFileError, match=reason):
        read_volume(zipped(files))


def test_npz_needs_a_table() -> None:
    _assert_chest(read_volume(npz_bytes(ct=chest()), header=HEADER))
    with pytest.raises(StudyFileError, match="neither spacing nor orientation"):
        read_volume(npz_bytes(ct=chest()))
    with pytest.raises(StudyFileError, match="object"):
        read_volume(npz_bytes(ct=np.full(SHAPE, None)), header=HEADER)
    with pytest.raises(StudyFileError, match="no volume"):
        read_volume(npz_bytes(ct=chest()[0]), header=HEADER)


@pytest.mark.parametrize("values", [chest() + np.int16(1024), np.clip(chest() - np.int16(1024), -2048, 3000)])
def test_values_that_are_not_hounsfield_units_are_refused(values: np.ndarray[Any, Any]) -> None:
    """Stored values never rescaled, and HU rescaled once more."""
    shape = (20, 20, 20)
    body = np.full(shape, 40, np.int16)
    body[:, :6] = -900
    shifted = body + (values.reshape(-1)[0] - chest().reshape(-1)[0])
    assert read_volume(nifti_bytes(body)).shape == shape
    with pytest.raises(StudyFileError, match="not Hounsfield units of a chest"):
        read_volume(nifti_bytes(shifted.astype(np.int16)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (nifti_bytes(chest().astype(np.float32) * 1e6), "not Hounsfield units"),
        (nifti_bytes(np.where(chest() == 1200, np.nan, chest())), "not Hounsfield units"),
        (nifti_bytes(chest(), scl_slope=1.0, scl_inter=np.inf), "damaged"),
        (nifti_bytes(chest(), pixdim=[1, 9, 9, 9, 0, 0, 0, 0]), "pixdim says"),
        (nifti_bytes(chest(), vox_offset=8), "begin at byte 8"),
        (nifti_bytes(chest(), dim=[3, 8, 10, 7, 1, 1, 1, 1]), "cut short"),
        (nifti_bytes(chest(), dim=[4, 8, 5, 6, 2, 1, 1, 1]), "no volume"),
        (nifti_bytes(chest(), dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "beyond 1,048,576,000 voxels"),
        (nifti_bytes(chest(), datatype=128, bitpix=24), "integers and floats"),
        (nifti_bytes(chest(), magic=b"ni1"), "n\\+1 or n\\+2 mark is missing"),
        (nifti_bytes(chest(), xyzt_units=5), "unknown code 5"),
        (b"\x1f\x8bgarbage", "gzip file is damaged"),
        (b"PK\x03\x04garbage", "zip archive is damaged"),
        (b"plain text", "no volume"),
    ],
)
def test_damage_and_lies_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(StudyFileError, match=reason):
        read_volume(data)


def test_a_limit_holds_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxels, "MAX_VOXELS", 100)
    for data, header in (
        (nifti_bytes(chest()), None),
        (zipped(series(chest())), None),
        (npz_bytes(ct=chest()), HEADER),
    ):
        with pytest.raises(StudyFileError, match="beyond 100 voxels"):
            read_volume(data, header=header)


def test_volumes_live_in_a_lake_one_row_group_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayzero.studies.lake.GROUP_BYTES", chest().nbytes)
    image = read_volume(nifti_bytes(chest()), name="s/ct")
    mask = Mask.from_array(chest() > 0)
    studies = [
        Study(
            study_id=f"s{n}",
            patient_id="p",
            corpus="c",
            split="train",
            images=(image,),
            regions=(Region(image_id="s/ct", finding="f", phrase="f", mask=mask),),
        )
        for n in range(3)
    ]
    lake = write_lake(str(tmp_path), studies)
    assert [group.num_rows for group in lake.row_groups()] == [1, 1, 1]
    assert lake.counts["view"] == {"volume": 3}
    (read, *_) = lake.read()
    _assert_chest(read.images[0])
    assert read.regions[0].mask is not None
    np.testing.assert_array_equal(read.regions[0].mask.array(), chest() > 0)
    assert from_row(to_row(studies[0])) == studies[0]
