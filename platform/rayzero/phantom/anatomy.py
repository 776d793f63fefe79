"""The normal chest: outlines of body, lungs, heart, mediastinum and diaphragm as solids.

All numbers are in mm for a person of average build standing upright in full inspiration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy.interpolate import PchipInterpolator

from .patient import Study
from .skeleton import skeleton
from .solids import LEVELS, Bools, Ellipsoid, Floats, Solid, ellipsoid_solid
from .tubes import Tube
from .vessels import airways, vessels

SIDES = ("right", "left")
APEX, BASE, LATERAL_ANGLE = 140.0, -160.0, -132.0
HU = {"air": -1000.0, "lung": -850.0, "fat": -95.0, "soft": 40.0, "fluid": 15.0, "breast": -40.0}


@dataclass(frozen=True)
class Shape:
    """What findings and pose change about the normal outlines; all in mm but ``heart``, a scale."""

    dome_top: dict[str, float]
    heart: float
    depth: float = 0.0
    lung_hu: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SIDES, HU["lung"]))
    vessel_scale: float = 1.0


@dataclass
class Anatomy:
    """Everything a film or a volume is made from, for one study.

    ``cavities`` hold ``lungs``; the space between them is fluid, air or nothing (``space_hu``). ``organs`` are soft
    tissue that displaces lung. ``gas`` lies within soft tissue. ``lesions`` add density to lung. ``pleura`` marks a
    lung edge drawn as a visible line. ``tubes`` add density anywhere.
    """

    body: Solid
    muscle: Solid
    breasts: list[Solid]
    cavities: dict[str, Solid]
    lungs: dict[str, Solid]
    space_hu: dict[str, float]
    lung_hu: dict[str, float]
    organs: dict[str, Solid]
    gas: list[tuple[Solid, int]]
    spine: Solid
    lesions: list[Ellipsoid]
    tubes: list[Tube]
    heart_scale: float
    turn: float
    silhouettes: list[tuple[str, int]] = field(default_factory=list)
    emptied: list[tuple[str, int]] = field(default_factory=list)
    lucent: list[int] = field(default_factory=list)

    def in_lung(self, side: str, points: Floats) -> Bools:
        """Whether each point (N, 3) lies in aerated lung of that side."""
        inside = self.lungs[side].contains(points)
        for organ in self.organs.values():
            left = np.flatnonzero(inside)
            inside[left] = ~organ.contains(points[left])
        return inside


def curve(at: tuple[float, ...], value: tuple[float, ...], where: Floats = LEVELS) -> Floats:
    """A smooth curve through the knots (at, value) without overshoot, flat outside them, evaluated at ``where``."""
    return np.asarray(_interpolator(at, value)(np.clip(where, at[0], at[-1])))


@cache
def _interpolator(at: tuple[float, ...], value: tuple[float, ...]) -> PchipInterpolator:
    return PchipInterpolator(at, value)


def normal_anatomy(study: Study, shape: Shape) -> Anatomy:
    """Build the chest of ``study`` with outlines changed by ``shape`` but no lesions yet."""
    build, pose = study.build, study.pose
    cavities = {side: _cavity(side, study, shape) for side in SIDES}
    muscle, body = _trunk(study, cavities["left"])
    organs = {f"{side} dome": _dome(side, cavities[side], shape.dome_top[side]) for side in SIDES}
    organs |= _mediastinum(shape, study)
    spine = _spine(build.spine_bend_mm, cavities["left"])
    organs["paraspinal"] = spine.grown(3.0)
    turned = {name: organ.sheared(pose.turn, _PIVOT) for name, organ in organs.items()}
    cavities = {side: cavity.sheared(pose.turn, _PIVOT) for side, cavity in cavities.items()}
    anatomy = Anatomy(
        body=body,
        muscle=muscle,
        breasts=_breasts(build.breast_mm, body),
        cavities=cavities,
        lungs=dict(cavities),
        space_hu=dict.fromkeys(SIDES, HU["lung"]),
        lung_hu=dict(shape.lung_hu),
        organs=turned,
        gas=[(_stomach(shape.dome_top["left"], build.seed), -1)],
        spine=spine.sheared(pose.turn, _PIVOT),
        lesions=[],
        tubes=skeleton(cavities, spine, build.width, pose.turn),
        heart_scale=shape.heart,
        turn=pose.turn,
    )
    return anatomy


def furnish(anatomy: Anatomy, study: Study, shape: Shape) -> None:
    """Add vessels, hila and airways to the lungs as the findings have left them."""
    rng = np.random.default_rng(study.build.seed)
    for side in SIDES:
        for tube in vessels(side, rng, shape.vessel_scale, study.build.width, study.build.height):
            anatomy.tubes.append(tube.keep(anatomy.in_lung(side, tube.points)))
        sign = -1.0 if side == "right" else 1.0
        for dz, dx, radii in ((8.0, 0.0, (11, 12, 13)), (-10.0, 3.0, (8, 9, 14))):
            centre = (sign * (33 + dx) * study.build.width, 8.0, _HILUM[side] + dz)
            anatomy.lesions.append(Ellipsoid.of(centre, radii, 620.0, soft=True))
    for tube in airways():
        inside = ~(anatomy.in_lung("right", tube.points) | anatomy.in_lung("left", tube.points))
        anatomy.tubes.append(tube.keep(inside))


_PIVOT = 62.0
_HILUM = {"right": 6.0, "left": 14.0}


def _cavity(side: str, study: Study, shape: Shape) -> Solid:
    """The pleural cavity of one side, from its apex to the bottom of the posterior recess."""
    build = study.build
    t = (LEVELS - BASE) / (APEX * build.height - BASE)
    outer = 137 * build.width * curve(*_OUTER, t)
    inner = curve((0, 0.6, 0.85, 1), (4, 6, 13, 22), t)
    front = curve(*_FRONT, t) * build.depth - shape.depth
    back = curve(*_BACK, t) * (0.5 + build.depth / 2) + shape.depth / 3
    cap = np.clip(1 - (np.clip(t - 0.78, 0, None) / 0.22) ** 2.6, 0, 1) ** 0.45 * (t >= 0)
    x, a = (outer + inner) / 2, (outer - inner) / 2 * cap
    y, b = (front + back) / 2, (back - front) / 2 * cap
    sign = -1.0 if side == "right" else 1.0
    return Solid(sign * x - a, sign * x + a, y - b, y + b, power=2.4)


_OUTER = ((0, 0.2, 0.4, 0.6, 0.75, 0.87, 0.95, 1), (0.95, 1.0, 0.985, 0.92, 0.83, 0.72, 0.62, 0.56))
_FRONT = ((0, 0.25, 0.5, 0.7, 0.85, 0.95, 1), (-84, -92, -90, -76, -48, -22, -5))
_BACK = ((0, 0.25, 0.5, 0.75, 0.9, 1), (82, 92, 92, 84, 68, 52))


def _trunk(study: Study, cavity: Solid) -> tuple[Solid, Solid]:
    """Muscle and skin: wide enough for the rib cage everywhere, sloping from the shoulders to the neck."""
    build = study.build
    side = curve((-210, -100, 0, 60, 95, 120, 138, 152, 170, 210), (140, 148, 150, 152, 166, 178, 165, 112, 68, 58))
    side = side * build.width
    front = curve((-210, -100, 0, 80, 120, 150, 175, 210), (-106, -108, -106, -90, -66, -48, -46, -50))
    back = curve((-210, -60, 60, 110, 150, 210), (108, 114, 114, 104, 82, 62))
    # Below the lungs the trunk goes on as wide as it was at their base.
    level = np.clip(LEVELS, BASE + 2, 118)
    side = np.maximum(side, np.interp(level, LEVELS, cavity.x1) + 13)
    front = np.minimum(front * build.depth, np.interp(level, LEVELS, cavity.y0) - 13)
    back = np.maximum(back * build.depth, np.interp(level, LEVELS, cavity.y1) + 17)
    muscle = Solid(-side, side, front, back, power=2.6)
    return muscle, muscle.grown(build.fat_mm)


def _dome(side: str, cavity: Solid, top: float) -> Solid:
    """Hemidiaphragm and all below it: rises steeply from the wall and meets it in sharp costophrenic angles."""
    sign = -1.0 if side == "right" else 1.0
    outer, middle = (cavity.x1, 66.0) if sign > 0 else (-cavity.x0, 62.0)

    def rise(foot: float) -> Floats:
        q = np.clip((top - LEVELS) / (top - foot), 0, None)
        arc = np.sqrt(np.clip(1 - (1 - q) ** 2, 0, 1)) ** 1.15
        return np.asarray(np.where(q < 1, arc, 1.0 + 0.15 * (q - 1)))

    lateral = middle + (outer + 1 - middle) * rise(LATERAL_ANGLE)
    medial = middle - (middle + 3) * rise(min(LATERAL_ANGLE + 18, top - 9))
    y = -14.0
    front = y + (cavity.y0 - 1 - y) * rise(min(-112.0, top - 8))
    back = y + (cavity.y1 + 1 - y) * rise(BASE + 6)
    x0, x1 = sorted((sign * medial, sign * lateral), key=lambda e: float(e[0]))
    return Solid(x0, x1, front, back, power=2.2)


def _mediastinum(shape: Shape, study: Study) -> dict[str, Solid]:
    """Heart, great vessels and the tissue around them; the heart rests on the diaphragm and grows to the left."""
    width, height = study.build.width, study.build.height
    heart = shape.heart * study.build.heart
    scale = heart * width
    low, high = min(-112.0 * (0.6 + 0.4 * heart), shape.dome_top["left"] - 18), 28.0 * height
    s = np.clip((LEVELS - low) / (high - low), 0, 1)
    cap = np.clip(np.minimum(s / 0.12, (1 - s) / 0.1), 0, 1)
    cap = np.sqrt(1 - (1 - cap) ** 2)
    left = curve((0, 0.12, 0.25, 0.4, 0.58, 0.75, 0.88, 1), (66, 82, 87, 82, 66, 48, 38, 34), s)
    right = curve((0, 0.2, 0.4, 0.6, 0.8, 1), (-30, -40, -45, -44, -34, -24), s)
    x, a = (left + right) / 2 * scale, (left - right) / 2 * scale * cap
    y0, y1 = -74.0 - 8 * (heart - 1), 26.0 + 70 * (heart - 1)
    bulge = np.sqrt(np.clip(1 - np.abs((s - 0.42) / 0.6) ** 2.2, 0, 1)) * np.where(cap > 0, 1, 0)
    y, b = (y0 + y1) / 2 + 14 * (s - 0.4), (y1 - y0) / 2 * bulge
    trunk = curve((-200, 60, 110, 150, 210), (20, 23, 25, 28, 30))
    cava = curve((-200, -40, 20, 70, 110, 150, 210), (18, 20, 28, 29, 26, 28, 30))
    ones = np.ones_like(LEVELS)
    aorta = 12.0 * np.sqrt(np.clip((50 * height - LEVELS) / 16, 0, 1))
    centre = curve((-200, -100, 0, 52), (4, 10, 20, 24))
    return {
        "heart": Solid(x - a, x + a, y - b, y + b),
        "mediastinum": Solid(-cava * width, trunk * width, -58.0 * ones, 48.0 * ones),
        "descending aorta": Solid(centre - aorta, centre + aorta, 44 - aorta, 44 + aorta),
        "aortic knob": ellipsoid_solid((22 * width, 12, 50 * height), (18, 36, 16)),
        "pulmonary trunk": ellipsoid_solid((32 * width, -8, 24 * height), (15, 24, 20)),
    }


def _spine(bend: float, cavity: Solid) -> Solid:
    """Vertebral bodies with discs between them: waisted bodies, 25 mm apart."""
    middle = bend * np.sin(LEVELS / 60)
    waist = 17.5 + 2.0 * np.abs(np.cos(np.pi * LEVELS / 25.0)) ** 3
    back = np.interp(LEVELS, [-210, -60, 40, 150, 210], [62, 66, 66, 54, 44])
    return Solid(middle - waist, middle + waist, back - 17, back + 17)


def _stomach(dome: float, seed: int) -> Solid:
    """Gas in the gastric fundus over a flat fluid level."""
    rng = np.random.default_rng(seed + 7)
    width, height = rng.uniform(18, 34), rng.uniform(14, 24)
    centre = (rng.uniform(48, 66), rng.uniform(-20, 10), dome - height - rng.uniform(7, 12))
    return ellipsoid_solid(centre, (width, width, height), floor=centre[2] - height * rng.uniform(0.1, 0.7))


def _breasts(thickness: float, body: Solid) -> list[Solid]:
    if thickness == 0:
        return []
    skin = float(np.interp(-40, LEVELS, body.y0))
    radii = (54, 46 + 0.7 * thickness, 72)
    return [ellipsoid_solid((sign * 68, skin + 46, -44), radii) for sign in (-1, 1)]
