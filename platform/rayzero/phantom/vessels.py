"""Branching pulmonary vessels and the central airways."""

from __future__ import annotations

import numpy as np

from .solids import Floats
from .tubes import Tube, round_tube

_GENERATIONS = 5


def vessels(side: str, rng: np.random.Generator, scale: float, width: float, height: float) -> list[Tube]:
    """A tree of vessels from the hilum of one lung, as one tube of many points; ``scale`` multiplies the calibre."""
    sign = -1.0 if side == "right" else 1.0
    origin = np.array([sign * 30 * width, 8.0, 6.0 if side == "right" else 14.0])
    # Trunks fan out over the whole lung in the coronal plane, denser downwards where the flow is.
    fan = np.deg2rad(np.array([72, 48, 24, 2, -18, -34, -50, -66, -84, 60, 0, -42, -72]) + rng.normal(0, 5, 13))
    tilt = np.concatenate([rng.uniform(-0.35, 0.25, 9), rng.uniform(-1.0, 1.0, 4)])
    heading = np.column_stack([sign * np.cos(fan) * np.cos(tilt), np.sin(tilt), np.sin(fan) * np.cos(tilt)])
    start = origin + heading * 6 + rng.normal(0, 3, heading.shape)
    radius = rng.uniform(2.8, 4.0, len(fan)) * scale
    length = np.full(len(fan), 27.0) * height
    pieces: list[tuple[Floats, Floats, Floats]] = []
    for _ in range(_GENERATIONS):
        points, r, volume, start, heading = _grow(start, heading, length, radius, rng)
        pieces.append((points, r, volume))
        start, heading, radius = np.repeat(start, 2, 0), _split(heading, rng), np.repeat(radius, 2) * 0.73
        radius = np.maximum(radius * rng.uniform(0.85, 1.15, len(radius)), 0.45)
        length = np.repeat(length, 2) * rng.uniform(0.72, 1.05, len(radius))
    points, r, volume = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return [Tube(points, np.repeat(r[:, None], 3, axis=1), volume, 890.0)]


def airways() -> list[Tube]:
    """Trachea and main bronchi: air in the mediastinum."""
    trachea = np.array([[0, -2, 205], [0, 6, 120], [2, 14, 56.0]])
    right = np.array([[1, 14, 58], [-14, 15, 38], [-34, 16, 20.0]])
    left = np.array([[3, 14, 58], [20, 16, 40], [42, 20, 26.0]])
    return [round_tube(trachea, 8.5, -950.0), round_tube(right, 6.5, -900.0), round_tube(left, 5.5, -900.0)]


def _grow(
    start: Floats, heading: Floats, length: Floats, radius: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """One generation of slightly bent branches: its points, radii and volumes, and where its branches end."""
    count = max(int(np.ceil(length.max() / 1.8)), 2)
    t = (np.arange(count) + 0.5) / count
    bend = rng.normal(0, 0.10, heading.shape) * length[:, None]
    path = start[:, None] + heading[:, None] * (length[:, None] * t)[:, :, None]
    path = path + bend[:, None] * (t * t)[None, :, None]
    taper = radius[:, None] * (1 - 0.2 * t)
    volume = np.pi * taper**2 * (length / count)[:, None]
    end = start + heading * length[:, None] + bend
    course = heading * length[:, None] + 2 * bend
    course /= np.linalg.norm(course, axis=1, keepdims=True)
    return path.reshape(-1, 3), taper.ravel(), volume.ravel(), end, course


def _split(heading: Floats, rng: np.random.Generator) -> Floats:
    """Two children per branch that part to opposite sides of it."""
    aside = np.cross(heading, rng.normal(0, 1, heading.shape) + np.array([0, 1.5, 0]))
    aside /= np.maximum(np.linalg.norm(aside, axis=1, keepdims=True), 1e-6)
    spread = rng.uniform(0.2, 0.55, (len(heading), 2))
    children = np.stack([heading + aside * spread[:, :1], heading - aside * spread[:, 1:]], axis=1).reshape(-1, 3)
    return np.asarray(children / np.linalg.norm(children, axis=1, keepdims=True))
