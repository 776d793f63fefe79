"""One DICOM CT series into a volume: slices ordered by where they lie in the patient, never by name or number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import FileDataset

from rayzero.studies.codecs import decode
from rayzero.studies.dicom import check_layout, check_syntax, parse
from rayzero.studies.display import check_range, numbers
from rayzero.studies.errors import StudyFileError, shown
from rayzero.studies.kinds import check_count
from rayzero.studies.orientation import Array
from rayzero.studies.study import Image
from rayzero.studies.voxels import VolumeHeader, check_size, to_hounsfield, volume_image

_ATTRIBUTES = [
    "SOPClassUID", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "PixelData",
]  # fmt: skip
_NEEDED = (
    "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "PixelData",
)  # fmt: skip
_STEP_TOLERANCE = 0.1
"""Share of the usual step by which the distance of two slices may differ: positions are written rounded."""


@dataclass(frozen=True)
class _Slice:
    """One file: ``hu`` int16 (rows, columns) at ``position`` (3,) mm, rows and columns along ``axes`` (2, 3)."""

    name: str
    series: str
    position: Array
    axes: Array
    spacing: tuple[float, float]
    hu: Array


def read_series(files: Iterable[tuple[str, bytes]], count: int, image_id: str) -> Image:
    """The volume that ``count`` DICOM files (name, bytes) make up.

    Raises StudyFileError for a file that is not a CT slice, for slices of several series or grids, for two at one
    place, and for a missing one.
    """
    check_count(count)
    slices: list[_Slice] = []
    for name, data in files:
        try:
            slices.append(_read_slice(name, data, count))
        except StudyFileError as error:
            raise StudyFileError(error.stage, f"{name}: {error.reason}") from error
    _check_one_grid(slices)
    normal = np.cross(slices[0].axes[0], slices[0].axes[1])
    slices.sort(key=lambda one: float(one.position @ normal))
    _check_steps(slices, normal)
    header = stack_header(np.array([one.position for one in slices]), slices[0].axes, slices[0].spacing)
    return volume_image(image_id, np.stack([one.hu for one in slices]), header, units_stated=True)


def stack_header(positions: Array, axes: Array, spacing: tuple[float, float]) -> VolumeHeader:
    """Axes and spacing of slices at ``positions`` (n, 3), in order along their normal, n at least 2.

    ``axes`` (2, 3) are the directions along a row and along a column, ``spacing`` the step from row to row and from
    column to column, in mm.
    """
    # The course from the first slice to the last, so that a tilted gantry shows as shear.
    along = (positions[-1] - positions[0]) / (len(positions) - 1)
    step = float(along @ np.cross(axes[0], axes[1]))
    # Rows follow the second direction cosine: it points from row to row.
    return VolumeHeader(axes=(tuple(along), tuple(axes[1]), tuple(axes[0])), spacing_mm=(step, *spacing))


def _read_slice(name: str, data: bytes, count: int) -> _Slice:
    dataset = parse(data, _ATTRIBUTES)
    check_syntax(dataset)
    _check_header(dataset)
    check_layout(dataset)
    check_size((count, int(dataset.Rows), int(dataset.Columns)))
    stored = decode(dataset)
    check_range(stored, int(dataset.BitsStored))
    slope, intercept = numbers(dataset.RescaleSlope)[0], numbers(dataset.RescaleIntercept)[0]
    axes = np.array(_numbers(dataset, "ImageOrientationPatient", 6)).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2):
        raise StudyFileError("header", "ImageOrientationPatient does not hold two perpendicular directions")
    down, across = _numbers(dataset, "PixelSpacing", 2)
    return _Slice(
        name=name,
        series=str(dataset.SeriesInstanceUID),
        position=np.array(_numbers(dataset, "ImagePositionPatient", 3)),
        axes=axes,
        spacing=(down, across),
        hu=to_hounsfield(stored[None], slope, intercept)[0],
    )


def _check_header(dataset: FileDataset) -> None:
    """Refuse all that is not one slice of a CT in Hounsfield units."""
    sop_class = dataset.get("SOPClassUID")
    if sop_class != uid.CTImageStorage:
        found = uid.UID(shown(sop_class)).name if sop_class else "no SOP class"
        raise StudyFileError("header", f"the file holds {found}, not a CT slice")
    missing = [name for name in _NEEDED if dataset.get(name) in (None, "", b"")]
    if missing:
        raise StudyFileError("header", f"the header lacks {', '.join(missing)}")
    if int(dataset.get("NumberOfFrames") or 1) != 1 or int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise StudyFileError("header", "a CT slice is one frame of one sample a pixel")
    units = str(dataset.get("RescaleType") or "HU")
    if units != "HU":
        raise StudyFileError("header", f"RescaleType is {shown(units)}; Hounsfield units (HU) are read")


def _numbers(dataset: FileDataset, name: str, count: int) -> list[float]:
    values = numbers(dataset.get(name))
    if len(values) != count or not np.isfinite(values).all():
        raise StudyFileError("header", f"{name} is {shown(dataset.get(name))}; {count} numbers belong there")
    return values


def _check_one_grid(slices: list[_Slice]) -> None:
    """Refuse slices of several series, or of several orientations, sizes or spacings."""
    series: dict[str, int] = {}
    for one in slices:
        series[one.series] = series.get(one.series, 0) + 1
    if len(series) > 1:
        counts = ", ".join(map(str, sorted(series.values(), reverse=True)))
        raise StudyFileError("open", f"the files belong to {len(series)} series ({counts} slices); give one of them")
    first = slices[0]
    for one in slices:
        same: dict[str, Any] = {
            "size": one.hu.shape == first.hu.shape,
            "pixel spacing": np.allclose(one.spacing, first.spacing, rtol=1e-3),
            "orientation": np.allclose(one.axes, first.axes, atol=1e-3),
        }
        for what, equal in same.items():
            if not equal:
                raise StudyFileError("header", f"{one.name} and {first.name} differ in {what}; a volume has one")


def _check_steps(slices: list[_Slice], normal: Array) -> None:
    """Refuse two slices at one place, and gaps."""
    depth = np.array([one.position @ normal for one in slices])
    steps = np.diff(depth)
    usual = float(np.median(steps))
    for k, step in enumerate(steps):
        if step <= _STEP_TOLERANCE * usual or step <= 0:
            names = f"{slices[k].name} and {slices[k + 1].name}"
            raise StudyFileError(
                "header", f"{names} lie at one place ({depth[k]:.2f} mm); a volume has one slice there"
            )
    wide = np.flatnonzero(np.abs(steps - usual) > _STEP_TOLERANCE * usual)
    if len(wide):
        k = int(wide[0])
        reason = f"slices are {usual:.2f} mm apart, yet {steps[k]:.2f} mm between {depth[k]:.2f} and {depth[k + 1]:.2f}"
        raise StudyFileError("header", f"{reason} mm; {len(wide)} such places, slices are missing")
