"""From stored values to display values: modality transform, values of interest and polarity as DICOM states them.

Pixels stay the stored integers. What a header says about their display becomes the interval of stored values from
black to white, and a curve over it where it is no straight line (PS3.3, C.11.1 and C.11.2). An image is stored with
air dark, so the interval and the curve are mirrored together with the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from rayzero.errors import first_line
from rayzero.studies.errors import StudyFileError

MAX_CURVE = 4096
"""Points of a display curve, at most; a longer table is resampled linearly."""

_SIGMOID_REACH = 4.0  # widths on each side of the centre: the sigmoid is within 2e-7 of its limits there


@dataclass(frozen=True)
class Display:
    """Stored pixels with air dark, and how they are shown.

    ``window`` is (centre, width) in stored values: centre - width/2 is black, centre + width/2 is white; empty when
    the file states none. ``curve`` holds display values in [0, 1] at equal steps over the window; empty is a line.
    ``inverted`` tells that the file's values were mirrored about the range of ``bits``.
    """

    pixels: np.ndarray[Any, Any]
    bits: int
    window: tuple[float, ...]
    curve: tuple[float, ...]
    inverted: bool


def to_display(stored: np.ndarray[Any, Any], dataset: Dataset) -> Display:
    """``stored`` (H, W) as the header of ``dataset`` says to show it. Raises StudyFileError."""
    bits = int(dataset.BitsStored)
    check_range(stored, bits)
    slope, intercept = 1.0, 0.0
    if "ModalityLUTSequence" in dataset:
        stored, bits = _look_up(stored, dataset)
    else:
        slope, intercept = _rescale(dataset)
    bounds, curve = _values_of_interest(dataset)
    negative = dataset.PhotometricInterpretation == "MONOCHROME1"
    if len(curve) and negative:
        curve = 1 - curve
    falling = len(curve) > 0 and bool(curve[-1] < curve[0])
    # A window rises with the value, and MONOCHROME1 shows it upside down.
    rises = not falling if len(curve) else not negative
    # A negative slope turns the direction once more. What falls with the stored value shows air bright.
    inverted = rises != (slope > 0)
    window: tuple[float, ...] = ()
    if bounds:
        low, high = sorted((bound - intercept) / slope for bound in bounds)
        top = _top(stored, bits)
        low, high = (top - high, top - low) if inverted else (low, high)
        window = ((low + high) / 2, high - low)
        if falling:  # the modality axis and the stored axis run against each other
            curve = curve[::-1]
    return Display(_mirror(stored, bits) if inverted else stored, bits, window, _resampled(curve), inverted)


def _values_of_interest(dataset: Dataset) -> tuple[tuple[float, float] | None, np.ndarray[Any, Any]]:
    """(black, white) in modality units, or None; and the curve between them, empty for a straight line."""
    if dataset.get("VOILUTSequence"):
        return _table(dataset)
    centres, widths = numbers(dataset.get("WindowCenter")), numbers(dataset.get("WindowWidth"))
    if not centres or not widths or not np.isfinite(centres[0]) or not 0 < widths[0] < np.inf:
        return None, np.empty(0)
    centre, width = centres[0], widths[0]
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        reach = _SIGMOID_REACH * width
        steps = np.linspace(-_SIGMOID_REACH, _SIGMOID_REACH, MAX_CURVE // 2 + 1)
        return (centre - reach, centre + reach), 1 / (1 + np.exp(-4 * steps))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise StudyFileError("header", f"VOILUTFunction {function} is not LINEAR, LINEAR_EXACT or SIGMOID")
    if function == "LINEAR":  # equation of PS3.3, C.11.2.1.2.1: defined for pixel centres
        centre, width = centre - 0.5, max(width - 1, 0.0)
    return (centre - width / 2, centre + width / 2), np.empty(0)


def _table(dataset: Dataset) -> tuple[tuple[float, float], np.ndarray[Any, Any]]:
    """The first table of values of interest, its entries over their full range."""
    try:
        count, first, depth = (int(value) for value in dataset.VOILUTSequence[0].LUTDescriptor)
        count = count or 2**16
        # pydicom compares the inputs with this descriptor, and takes them in the type of the pixels.
        inputs = np.arange(first, first + count, dtype=np.int32)
        values = apply_voi(inputs, dataset, 0).astype(np.float64) / (2**depth - 1)
    except Exception as error:
        raise StudyFileError("pixels", f"the VOI LUT is damaged ({first_line(error)})") from error
    if count < 2 or values.min() < 0 or values.max() > 1:
        raise StudyFileError("pixels", f"the VOI LUT of {count} entries leaves its range of {depth} bits")
    return (float(first), float(first + count - 1)), values


def _look_up(stored: np.ndarray[Any, Any], dataset: Dataset) -> tuple[np.ndarray[Any, Any], int]:
    """The modality table applied, and the bits of its entries."""
    try:
        bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
        values = apply_modality_lut(stored, dataset)
    except Exception as error:
        raise StudyFileError("pixels", f"the modality LUT is damaged ({first_line(error)})") from error
    if not 1 <= bits <= 16:
        raise StudyFileError("pixels", f"the modality LUT states {bits} bits an entry; 1 to 16 are supported")
    values = values.astype(np.uint8 if bits <= 8 else np.uint16)
    check_range(values, bits)
    return values, bits


def _rescale(dataset: Dataset) -> tuple[float, float]:
    slope, intercept = numbers(dataset.get("RescaleSlope")), numbers(dataset.get("RescaleIntercept"))
    for name, given in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        if given and not np.isfinite(given[0]):
            raise StudyFileError("header", f"{name} is {given[0]:g}; it must be a number")
    if slope and slope[0] == 0:
        raise StudyFileError("header", "RescaleSlope is 0; it maps every pixel to one value")
    return (slope[0] if slope else 1.0), (intercept[0] if intercept else 0.0)


def check_range(stored: np.ndarray[Any, Any], bits: int) -> None:
    """Refuse values beyond the range of ``bits``. Raises StudyFileError."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.dtype == np.int16 else (0, 2**bits - 1)
    seen_low, seen_high = int(stored.min()), int(stored.max())
    if seen_low < low or seen_high > high:
        reason = f"pixel values reach [{seen_low}, {seen_high}], beyond the [{low}, {high}] of {bits} stored bits"
        raise StudyFileError("pixels", reason)


def _top(stored: np.ndarray[Any, Any], bits: int) -> int:
    """Value and mirrored value add up to this."""
    return -1 if stored.dtype == np.int16 else 2**bits - 1


def _mirror(stored: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Black for white about the range of ``bits``: exact in integers, and its own inverse."""
    mirrored: np.ndarray[Any, Any] = np.subtract(stored.dtype.type(_top(stored, bits)), stored)
    return mirrored


def _resampled(curve: np.ndarray[Any, Any]) -> tuple[float, ...]:
    if len(curve) > MAX_CURVE:
        curve = np.interp(np.linspace(0, len(curve) - 1, MAX_CURVE), np.arange(len(curve)), curve)
    return tuple(float(value) for value in curve.astype(np.float32))


def numbers(value: Any) -> list[float]:
    """A DICOM number, list of numbers, or empty element as a list."""
    if value is None or value == "":
        return []
    return [float(item) for item in (value if isinstance(value, Sequence) else [value])]
