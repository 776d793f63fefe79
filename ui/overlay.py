"""Drawing: maps as colours, coloured labels, outlines, boxes and peaks over an image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import contourpy
import matplotlib
import numpy as np
from matplotlib.path import Path
from PIL import Image as PillowImage

from ui.fields import Float

Grey = np.ndarray[Any, np.dtype[np.uint8]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Mode = Literal["map", "labels", "all"]

# Okabe and Ito: told apart by readers with any colour vision, and bright enough on a film.
PALETTE = ("#56B4E9", "#E69F00", "#00C08B", "#F0E442", "#D97FB5", "#FF6B3D", "#8FA8FF", "#E6E6E6")
COLOUR_MAPS = ("turbo", "magma", "viridis", "inferno", "cividis", "hot")


@dataclass(frozen=True)
class Look:
    """How maps are drawn over an image.

    ``mode`` shows the map of one finding (``heat``), coloured labels of several (``labelled``), or one picture each.
    ``threshold`` is on sigmoid(map); ``stretch`` spreads colours over the map's range; ``window`` is that of a CT.
    ``level`` and ``width`` window a film's stored values, its own window where they are None. ``opacity`` is applied by
    the browser, and here on export.
    """

    mode: Mode = "map"
    heat: str | None = None
    labelled: tuple[str, ...] = ()
    threshold: float = 0.5
    colours: str = "turbo"
    stretch: bool = True
    contour: bool = True
    box: bool = True
    peak: bool = True
    window: str = "lung"
    opacity: float = 0.55
    level: float | None = None
    width: float | None = None


@dataclass(frozen=True)
class Region:
    """The peak (x, y) of a map and the box (x0, y0, x1, y1) around it above a threshold, in pixels of the image."""

    peak: tuple[float, float]
    value: float
    box: tuple[float, float, float, float] | None


@dataclass(frozen=True)
class Layer:
    """A map in colour, to lie over an image: RGBA ``pixels``."""

    pixels: Pixels = field(repr=False)


def heat_layer(values: Float, look: Look, span: tuple[float, float]) -> Layer:
    """A map in colour where it is above the threshold; ``span`` is the range of the whole map."""
    low, high = span if look.stretch else (0.0, 1.0)
    shown = np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0)
    pixels = np.asarray(matplotlib.colormaps[look.colours](shown)) * 255.0
    # A ramp a few grey levels wide in place of a hard edge, and more colour where the map is stronger.
    edge = np.clip((values - look.threshold) / 0.02, 0.0, 1.0)
    pixels[..., 3] = 255.0 * edge * (0.1 + 0.9 * shown if look.stretch else 0.4 + 0.6 * shown)
    return Layer(pixels.astype(np.uint8))


def label_layer(fields: Sequence[Float], colours: Sequence[str], threshold: float) -> Layer:
    """Each pixel in the colour of the strongest of ``fields`` there, where that is above the threshold."""
    stack = np.stack(fields)
    palette = np.array([_rgb(colour) for colour in colours], dtype=np.uint8)
    strongest = stack.argmax(0)
    alpha = np.where(stack.max(0) >= threshold, 255, 0).astype(np.uint8)
    return Layer(np.dstack([palette[strongest], alpha]))


def compose(image: Grey, layer: Layer | None, look: Look) -> Pixels:
    """``image`` (H, W) with a layer over it, as (H, W, 3)."""
    base = np.repeat(image[..., None], 3, axis=2).astype(np.float32)
    if layer is None:
        return base.astype(np.uint8)
    height, width = image.shape
    over = PillowImage.fromarray(layer.pixels, "RGBA").resize((width, height), PillowImage.Resampling.BILINEAR)
    colours = np.asarray(over).astype(np.float32)
    alpha = colours[..., 3:] / 255.0 * look.opacity
    return np.asarray(base * (1.0 - alpha) + colours[..., :3] * alpha, dtype=np.uint8)


def outlines(values: Float, threshold: float, width: float, height: float) -> list[np.ndarray[Any, Any]]:
    """Closed outlines of the area above ``threshold``: arrays (n, 2) of x, y in pixels of the image."""
    rows, columns = values.shape
    # A rim of zeros closes outlines that would run off the image.
    rim = np.pad(values, 1)
    lines = contourpy.contour_generator(z=rim).lines(threshold)
    scale = np.array([width / columns, height / rows])
    limit = np.array([width, height])
    return [np.clip((np.asarray(line) - 0.5) * scale, 0, limit) for line in lines if len(line) > 3]


def locate(values: Float, threshold: float, width: float, height: float) -> Region:
    """Where the map is highest, and the box of the area above ``threshold`` around it."""
    rows, columns = values.shape
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    peak = (float((column + 0.5) * width / columns), float((row + 0.5) * height / rows))
    value = float(values[row, column])
    if value < threshold:
        return Region(peak, value, None)
    around = [line for line in outlines(values, threshold, width, height) if Path(line).contains_point(peak)]
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


def data_uri(image: Pixels) -> str:
    """``image`` inside a URI, so that no copy of it is written to a disk on the way to the browser."""
    transparent = image.ndim == 3 and image.shape[2] == 4
    file = io.BytesIO()
    if transparent:
        PillowImage.fromarray(image, "RGBA").save(file, "PNG", compress_level=3)
    else:
        PillowImage.fromarray(image).save(file, "JPEG", quality=90)
    kind = "png" if transparent else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def colour_bar(colours: str) -> str:
    """A CSS gradient of a colour map, low to high."""
    stops = matplotlib.colormaps[colours](np.linspace(0, 1, 9))
    text = ", ".join(matplotlib.colors.to_hex(stop) for stop in stops)
    return f"linear-gradient(to right, {text})"


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _bounds(line: np.ndarray[Any, Any]) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = line.min(axis=0), line.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)
