"""Ribs, clavicles, scapulae, sternum, humeral heads and the small bones of the spine as tubes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline

from .solids import LEVELS, Floats, Solid
from .tubes import Tube, flat_tube, round_tube, straight_rods

CORTEX_HU, MARROW_HU = 1800.0, 450.0
RIB_SPACING, FIRST_RIB, RIB_COUNT = 24.5, 143.0, 11


def rib_path(number: int, side: str, cavities: dict[str, Solid]) -> Floats:
    """Centre line of a rib (N, 3) in mm, from the spine round the wall of the chest to its front end."""
    sign = -1.0 if side == "right" else 1.0
    cavity = cavities[side]
    end = np.deg2rad(np.interp(number, [1, 2, 4, 7, 9, 11], [135, 142, 146, 140, 122, 78]))
    angle = np.linspace(0.12, end, int(70 + 70 * end / 2.5))
    start = FIRST_RIB - RIB_SPACING * (number - 1)
    slope = np.interp(number, [1, 3, 6, 10], [18, 30, 40, 46])
    z = start + 7 * np.sin(np.minimum(angle * 2.2, np.pi)) - slope * (1 - np.cos(angle)) - 7 * angle**2
    level = np.clip(z, -150, 118)
    outer = np.interp(level, LEVELS, sign * (cavity.x1 if sign > 0 else cavity.x0)) + 5.5
    front, back = np.interp(level, LEVELS, cavity.y0), np.interp(level, LEVELS, cavity.y1)
    middle, depth = (front + back) / 2, (back - front) / 2 + 5.0
    # A superellipse in the angle: squarer than a circle, as the chest wall is.
    x = outer * np.abs(np.sin(angle)) ** 0.8
    y = middle + depth * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.8
    # The head of the rib sits beside the vertebral body, well in front of the rib's most posterior point.
    head = np.exp(-((angle / 0.3) ** 2))
    y = y - head * 0.12 * depth
    return np.column_stack([sign * np.maximum(x, 20), y, z])


def rib_tubes(path: Floats, number: int, *, owner: int = -1) -> list[Tube]:
    """Cortex and marrow of a rib along ``path`` (N, 3)."""
    height = float(np.interp(number, [1, 3, 8, 11], [5.0, 6.2, 6.6, 5.2]))
    width = 3.9
    # The core takes back what the outline adds, which leaves a dense rim: the edge a reader traces.
    core = flat_tube(path, height * 0.76, width * 0.6, MARROW_HU - CORTEX_HU, owner=owner)
    return [flat_tube(path, height, width, CORTEX_HU, owner=owner), core]


def skeleton(cavities: dict[str, Solid], spine: Solid, width: float, turn: float) -> list[Tube]:
    """All bones but the ribs, which a fracture may alter, and the vertebral bodies, which are a solid."""
    tubes: list[Tube] = []
    for sign in (-1.0, 1.0):
        tubes += _clavicle(sign, width) + _scapula(sign, width) + _humerus(sign, width)
    tubes += _vertebral_arches(spine) + _sternum(cavities["left"])
    return [turned(tube, turn) for tube in tubes]


def turned(tube: Tube, turn: float, pivot: float = 62.0) -> Tube:
    """The tube after a small rotation by ``turn`` radians about the vertical axis through the spine."""
    points = tube.points.copy()
    points[:, 0] += turn * (tube.points[:, 1] - pivot)
    points[:, 1] -= turn * tube.points[:, 0]
    return Tube(points, tube.radii, tube.volume, tube.hu, tube.owner)


def smooth_path(knots: Sequence[ArrayLike], count: int = 40) -> Floats:
    """A smooth curve of ``count`` points (count, 3) through the knots, in mm."""
    points = np.asarray(knots, float)
    return np.asarray(CubicSpline(np.linspace(0, 1, len(points)), points)(np.linspace(0, 1, count)))


# Bones of the left side of a person of average build.
_CLAVICLE = smooth_path([(16, -52, 112), (48, -62, 113), (86, -50, 122), (124, -22, 131), (152, -4, 130)])
_MEDIAL_BORDER = smooth_path([(112, 88, 112), (126, 102, 70), (138, 104, 25), (142, 100, 2)])
_LATERAL_BORDER = smooth_path([(142, 100, 2), (150, 84, 50), (160, 52, 92), (166, 30, 112)])
_SCAPULAR_SPINE = smooth_path([(114, 96, 98), (136, 98, 112), (160, 70, 126), (170, 30, 134)])
_HUMERUS = smooth_path([(-4, 8, 122), (0, 8, 112), (10, 6, 90), (26, 4, 20)])


def _clavicle(sign: float, width: float) -> list[Tube]:
    path = _CLAVICLE * [sign * width, 1, 1]
    radius = np.interp(np.linspace(0, 1, len(path)), [0, 0.15, 0.5, 0.9, 1], [9, 6.5, 5.2, 6, 6.5])
    return [round_tube(path, radius, 820.0), round_tube(path, radius * 0.66, -520.0)]


def _scapula(sign: float, width: float) -> list[Tube]:
    border = _MEDIAL_BORDER * [sign * width, 1, 1]
    outer = _LATERAL_BORDER * [sign * width, 1, 1]
    spine = _SCAPULAR_SPINE * [sign * width, 1, 1]
    sheet = [border * (1 - w) + outer[::-1] * w for w in (0.2, 0.4, 0.6, 0.8)]
    tubes = [round_tube(p, r, 420.0, step=1.5) for p, r in ((border, 2.2), (outer, 4.0), (spine, 4.0))]
    return tubes + [round_tube(p, 7.0, 22.0, step=3.0) for p in sheet]


def _humerus(sign: float, width: float) -> list[Tube]:
    head = (_HUMERUS + np.array([176 * width, 0, 0])) * np.array([sign, 1, 1])
    radius = np.interp(np.linspace(0, 1, len(head)), [0, 0.12, 0.35, 1], [17, 20, 13, 11])
    return [round_tube(head, radius, 260.0, step=2.0)]


def _vertebral_arches(spine: Solid) -> list[Tube]:
    z = np.arange(-195.0, 200.0, 25.0)
    x0, x1, _, back = spine.outline(z)
    middle = np.column_stack([(x0 + x1) / 2, back, z])

    def rods(start: tuple[float, float, float], end: tuple[float, float, float], radius: float, hu: float) -> Tube:
        return straight_rods(middle + start, middle + end, radius, hu)

    # Discs: softer than the bodies between them, which is what tells one vertebra from the next on a film.
    discs = np.column_stack([middle[:, 0], middle[:, 1] - 17, z + 12.5])
    volume = np.full(len(z), np.pi * 16 * 15 * 2 * _DISC_HALF_MM)
    tubes = [Tube(discs, np.tile([16.0, 15.0, _DISC_HALF_MM], (len(z), 1)), volume, -210.0)]
    tubes.append(rods((0, 12, 2), (0, 40, -16), 3.6, 330.0))
    for sign in (-1.0, 1.0):
        tubes.append(rods((sign * 12, -6, 4), (sign * 12, 10, 3), 4.2, 420.0))
        tubes.append(rods((sign * 12, 8, 2), (sign * 36, 16, 5), 4.0, 230.0))
    return tubes


_DISC_HALF_MM = 4.0


def _sternum(cavity: Solid) -> list[Tube]:
    z = np.linspace(104, -62, 84)
    front = np.interp(np.minimum(z, 85), LEVELS, cavity.y0) - 9
    path = np.column_stack([np.zeros_like(z), front, z])
    half = np.interp(z, [-62, -30, 60, 80, 104], [9, 16, 15, 24, 26])
    step = abs(z[1] - z[0])
    radii = np.column_stack([half, np.full_like(z, 5.0), np.full_like(z, 2.5)])
    return [Tube(path, radii, np.pi * half * 5.0 * step, 230.0)]
