"""Radio-opaque lines, tubes and generators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .patient import Finding
from .skeleton import smooth_path
from .solids import LEVELS, Floats
from .tubes import Tube, round_tube

if TYPE_CHECKING:
    from .anatomy import Anatomy

_METAL_HU, _CATHETER_HU = 9000.0, 4200.0


def place_device(finding: Finding, owner: int, anatomy: Anatomy, rng: np.random.Generator) -> list[Tube]:
    """The tubes of the device named by ``finding.variant``."""
    if finding.variant == "pacemaker":
        return _pacemaker(owner, anatomy, rng)
    if finding.variant == "endotracheal tube":
        return _endotracheal_tube(owner, rng)
    return _venous_catheter(-1.0 if finding.side == "right" else 1.0, owner, rng)


def _venous_catheter(sign: float, owner: int, rng: np.random.Generator) -> list[Tube]:
    tip = rng.uniform(5, 32)
    knots: list[ArrayLike] = [(sign * 48, -20, 195), (sign * 36, -30, 150), (sign * 27, -40, 112)]
    if sign > 0:
        knots += [(4, -42, 92)]
    knots += [(-22, -34, 74), (-25, -24, 50), (-25, -18, tip)]
    return [round_tube(smooth_path(knots, 80), 1.7, _CATHETER_HU, owner=owner)]


def _endotracheal_tube(owner: int, rng: np.random.Generator) -> list[Tube]:
    tip = rng.uniform(80, 100)
    path = np.array([[0, -2, 205], [1, 5, 130], [2, 9, tip]])
    stripe = path + np.array([3.5, 0, 0])
    return [round_tube(path, 5.0, 330.0, owner=owner), round_tube(stripe, 0.9, _METAL_HU, owner=owner)]


def _pacemaker(owner: int, anatomy: Anatomy, rng: np.random.Generator) -> list[Tube]:
    centre = np.array([rng.uniform(84, 98), 0.0, rng.uniform(80, 96)])
    centre[1] = float(np.interp(centre[2], LEVELS, anatomy.muscle.y0)) * 0.72
    scale = anatomy.heart_scale
    lead: list[ArrayLike] = [
        centre + np.array([-6, 0, 16]),
        (58, -58, 112),
        (14, -44, 96),
        (-20, -32, 72),
        (-26, -18, 20),
        (-20 * scale, -22, -34),
        (20 * scale, -42, -66),
        (44 * scale, -48, -72),
    ]
    tubes = [_can(centre, owner), round_tube(smooth_path(lead, 140), 1.0, _METAL_HU, owner=owner)]
    tip = smooth_path(lead, 140)[-1]
    return [*tubes, round_tube(np.array([tip - [4, 0, 0], tip]), 1.7, _METAL_HU, owner=owner)]


def _can(centre: Floats, owner: int) -> Tube:
    """A generator: a rounded plate 46 by 40 mm and 7 mm thick, facing forwards."""
    u, w = np.meshgrid(np.arange(-23, 23.5, 1.0), np.arange(-20, 20.5, 1.0))
    inside = (np.abs(u) / 23) ** 3.2 + (np.abs(w) / 20) ** 3.2 <= 1
    u, w = u[inside], w[inside]
    points = np.column_stack([centre[0] + u, np.full_like(u, centre[1]), centre[2] + w])
    radii = np.tile([1.9, 3.5, 1.9], (len(u), 1))
    return Tube(points, radii, np.full(len(u), 7.0), 7000.0, owner)
