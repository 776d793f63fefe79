"""Drawing: maps over images, outlines, boxes. Pure functions of arrays."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import contourpy
import matplotlib
import numpy as np
from matplotlib.path import Path
from PIL import Image as PillowImage

Float = np.ndarray[Any, np.dtype[np.float32]]
Grey = np.ndarray[Any, np.dtype[np.uint8]]

# Okabe and Ito: told apart by readers with any colour vision, and bright enough on a film.
PALETTE = ("#56B4E9", "#E69F00", "#00C08B", "#F0E442", "#D97FB5", "#FF6B3D", "#8FA8FF", "#E6E6E6")
COLOUR_MAPS = ("turbo", "magma", "viridis", "inferno", "cividis", "hot")

_FIELD_SIDE = 256


@dataclass(frozen=True)
class Look:
    """How a map is drawn: ``opacity`` and ``threshold`` in [0, 1]; ``stretch`` spreads colours over the map's range."""

    opacity: float
    threshold: float
    colours: str
    stretch: bool
    marks: bool


@dataclass(frozen=True)
class Region:
    """The peak (x, y) of a map and the box (x0, y0, x1, y1) around it above a threshold, in pixels of the image."""

    peak: tuple[float, float]
    value: float
    box: tuple[float, float, float, float] | None


def to_field(grid: Float, extent: tuple[int, int, int, int], width: int, height: int) -> Float:
    """sigmoid of a patch grid of logits, laid where ``extent`` says and cut to an image of ``width`` x ``height``."""
    scale = min(1.0, _FIELD_SIDE / max(width, height))
    x0, y0, x1, y1 = (edge * scale for edge in extent)
    across, down = max(1, round(x1 - x0)), max(1, round(y1 - y0))
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    laid = _resize(grid, across, down)
    left, top = round(-x0), round(-y0)
    cut = laid[top : top + rows, left : left + columns]
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * cut)), dtype=np.float32)


def blend(image: Grey, field: Float, look: Look) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """``image`` (H, W) with the map in colour over it, where it is above the threshold, as (H, W, 3)."""
    height, width = image.shape
    values = _resize(field, width, height)
    low, high = (float(field.min()), float(field.max())) if look.stretch else (0.0, 1.0)
    shown = np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0)
    colours = np.asarray(matplotlib.colormaps[look.colours](shown))[..., :3] * 255.0
    # A ramp a few grey levels wide in place of a hard edge, and more colour where the map is stronger.
    edge = np.clip((values - look.threshold) / 0.02, 0.0, 1.0)
    alpha = (look.opacity * edge * (0.4 + 0.6 * shown))[..., None]
    return np.asarray(image[..., None] * (1.0 - alpha) + colours * alpha, dtype=np.uint8)


def outlines(field: Float, threshold: float, width: int, height: int) -> list[np.ndarray[Any, Any]]:
    """Closed outlines of the area above ``threshold``: arrays (n, 2) of x, y in pixels of the image."""
    rows, columns = field.shape
    # A rim of zeros closes outlines that would run off the image.
    rim = np.pad(field, 1)
    lines = contourpy.contour_generator(z=rim).lines(threshold)
    scale = np.array([width / columns, height / rows])
    limit = np.array([width, height])
    return [np.clip((np.asarray(line) - 0.5) * scale, 0, limit) for line in lines if len(line) > 3]


def locate(field: Float, threshold: float, width: int, height: int) -> Region:
    """Where the map is highest, and the box of the area above ``threshold`` around it."""
    rows, columns = field.shape
    row, column = np.unravel_index(int(field.argmax()), field.shape)
    peak = (float((column + 0.5) * width / columns), float((row + 0.5) * height / rows))
    value = float(field[row, column])
    if value < threshold:
        return Region(peak, value, None)
    around = [line for line in outlines(field, threshold, width, height) if Path(line).contains_point(peak)]
    if not around:
        return Region(peak, value, None)
    # Of nested outlines the outermost is the area's own.
    x0, y0, x1, y1 = max((_bounds(line) for line in around), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    return Region(peak, value, (x0, y0, x1, y1))


def shrink(image: Grey, side: int) -> Grey:
    """``image`` with its longest side at most ``side``."""
    picture = PillowImage.fromarray(image)
    picture.thumbnail((side, side), PillowImage.Resampling.LANCZOS)
    return np.asarray(picture)


def data_uri(image: np.ndarray[Any, Any]) -> str:
    """``image`` as a JPEG inside a URI: no copy of it is written to a disk on the way to the browser."""
    file = io.BytesIO()
    PillowImage.fromarray(image).save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def colour_bar(colours: str) -> str:
    """A CSS gradient of a colour map, low to high."""
    stops = matplotlib.colormaps[colours](np.linspace(0, 1, 9))
    text = ", ".join(matplotlib.colors.to_hex(stop) for stop in stops)
    return f"linear-gradient(to right, {text})"


def _resize(array: Float, width: int, height: int) -> Float:
    source = PillowImage.fromarray(np.ascontiguousarray(array, dtype=np.float32), mode="F")
    return np.asarray(source.resize((width, height), PillowImage.Resampling.BILINEAR))


def _bounds(line: np.ndarray[Any, Any]) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = line.min(axis=0), line.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)
