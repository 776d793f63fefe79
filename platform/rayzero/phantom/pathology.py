"""What each finding does to the chest: it moves outlines, empties or fills spaces, and adds density."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .anatomy import APEX, BASE, HU, SIDES, Anatomy, Shape, furnish, normal_anatomy
from .devices import place_device
from .patient import Finding, Study
from .skeleton import RIB_COUNT, rib_path, rib_tubes
from .solids import LEVELS, Ellipsoid, Floats, Solid, ellipsoid_solid
from .tubes import Tube, round_tube, straight_rods


def build_anatomy(study: Study) -> Anatomy:
    """The chest of ``study`` with its findings; a finding's parts carry its index in ``study.findings``."""
    shape = _shape(study)
    anatomy = normal_anatomy(study, shape)
    fractures = {(f.side, rib): k for k, f in enumerate(study.findings) for rib in f.ribs}
    for owner, finding in enumerate(study.findings):
        if finding.name in _OUTLINES:
            _OUTLINES[finding.name](anatomy, finding, owner)
    furnish(anatomy, study, shape)
    for owner, finding in enumerate(study.findings):
        if finding.name in _LESIONS:
            _LESIONS[finding.name](anatomy, finding, owner, np.random.default_rng(finding.seed))
    for side in SIDES:
        for number in range(1, RIB_COUNT + 1):
            path = rib_path(number, side, anatomy.cavities)
            broken = fractures.get((side, number))
            if broken is None:
                anatomy.tubes += rib_tubes(path, number)
            else:
                anatomy.tubes += _broken_rib(anatomy, path, number, study.findings[broken], broken)
    return anatomy


def _shape(study: Study) -> Shape:
    """Outlines as pose and findings set them."""
    dome = {"right": -80.0, "left": -91.0}
    dome = {side: top * study.build.height - study.pose.inspiration_mm for side, top in dome.items()}
    heart, depth, vessel_scale = 1.0, 0.0, 1.0
    lung_hu = dict.fromkeys(SIDES, HU["lung"])
    for finding in study.findings:
        grade = finding.grade
        if finding.name == "cardiomegaly":
            heart *= 1.22 + 0.12 * grade
        elif finding.name == "emphysema":
            dome = {side: max(top - 18 - 5 * grade, -117.0) for side, top in dome.items()}
            lung_hu = {side: hu - 45 - 14 * grade for side, hu in lung_hu.items()}
            heart, depth, vessel_scale = heart * 0.9, 7.0 + 4 * grade, vessel_scale * (0.86 - 0.06 * grade)
        elif finding.name == "pulmonary edema":
            vessel_scale *= 1.15 + 0.07 * grade
        elif finding.name == "atelectasis" and finding.site == "lower":
            dome = {side: top + (9 + 5 * grade) * (side == finding.side) for side, top in dome.items()}
    return Shape(dome, heart, depth, lung_hu, vessel_scale)


def _cardiomegaly(anatomy: Anatomy, finding: Finding, owner: int) -> None:
    anatomy.silhouettes.append(("heart", owner))


def _emphysema(anatomy: Anatomy, finding: Finding, owner: int) -> None:
    anatomy.lucent.append(owner)


def _effusion(anatomy: Anatomy, finding: Finding, owner: int) -> None:
    """Fluid that gathers at the base and climbs the wall: the lung above it ends in a meniscus."""
    for number, side in enumerate(finding.sides):
        dome = _top(anatomy.organs[f"{side} dome"])
        level = dome + (-26.0, 2.0, 42.0)[finding.grade] - 5 * number
        top = level + (44.0, 54.0, 66.0)[finding.grade]
        q = np.clip((top - LEVELS) / (top - level), 0, 1) ** 2.4
        lung = anatomy.lungs[side]
        width, depth = lung.x1 - lung.x0, lung.y1 - lung.y0
        lateral, medial, back, front = q * width * 0.7, q * width * 0.3, q * depth * 0.6, q * depth * 0.4
        x0, x1 = lung.x0 + medial, lung.x1 - lateral
        if side == "right":
            x0, x1 = lung.x0 + lateral, lung.x1 - medial
        y0, y1 = lung.y0 + front, lung.y1 - back
        above = level < LEVELS
        x1, y1 = np.where(above, x1, x0), np.where(above, np.maximum(y1, y0), y0)
        anatomy.lungs[side] = Solid(x0, x1, y0, y1, lung.power)
        anatomy.space_hu[side] = HU["fluid"]
        anatomy.emptied.append((side, owner))


def _pneumothorax(anatomy: Anatomy, finding: Finding, owner: int) -> None:
    """Air that gathers at the apex and along the side: the lung shrinks towards its hilum."""
    side = finding.side
    lung = anatomy.lungs[side]
    apical, lateral = (20.0, 36.0, 62.0)[finding.grade], (9.0, 19.0, 38.0)[finding.grade]
    apex = float(LEVELS[np.flatnonzero(lung.x1 > lung.x0 + 1)[-1]])
    source = BASE + (LEVELS - BASE) * (apex - BASE) / (apex - apical - BASE)
    # The shrunken apex keeps its shape but lies where the cavity is wider, so it is drawn in towards the hilum.
    x0, x1, y0, y1 = (np.interp(source, LEVELS, e) for e in (lung.x0, lung.x1, lung.y0, lung.y1))
    t = np.clip((LEVELS - BASE) / (APEX - BASE), 0, 1)
    gap = np.minimum(lateral * (0.25 + 0.75 * t), np.maximum(x1 - x0, 0) * 0.6)
    x0, x1 = (x0 + gap, x1) if side == "right" else (x0, x1 - gap)
    inset = np.minimum(gap * 0.5, (y1 - y0) * 0.3)
    y0 = y0 + inset
    empty = source > LEVELS[-1]
    anatomy.lungs[side] = Solid(x0, np.where(empty, x0, x1), y0, y1 - inset * 0.4, lung.power)
    anatomy.lung_hu[side] += (25.0, 55.0, 120.0)[finding.grade]
    anatomy.space_hu[side] = HU["air"]
    anatomy.emptied.append((side, owner))


def _hernia(anatomy: Anatomy, finding: Finding, owner: int) -> None:
    """Stomach above the diaphragm, behind the heart, with gas over a fluid level."""
    rng = np.random.default_rng(finding.seed)
    size = finding.size_mm
    dome = _top(anatomy.organs["left dome"])
    radii = np.array([size * 0.56, size * 0.44, size * 0.46])
    centre = np.array([rng.uniform(4, 16), 26 + size * 0.12, dome + size * rng.uniform(0.22, 0.34)])
    anatomy.organs["hernia"] = ellipsoid_solid(centre, radii)
    level = centre[2] + radii[2] * rng.uniform(-0.15, 0.15)
    anatomy.gas.append((ellipsoid_solid(centre, radii - 4.0, floor=level), owner))
    anatomy.silhouettes.append(("hernia", owner))


_OUTLINES: dict[str, Callable[[Anatomy, Finding, int], None]] = {
    "cardiomegaly": _cardiomegaly,
    "emphysema": _emphysema,
    "pleural effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "hiatal hernia": _hernia,
}


def _top(solid: Solid) -> float:
    return float(LEVELS[np.flatnonzero((solid.x1 > solid.x0) & (solid.y1 > solid.y0))[-1]])


def _spot(anatomy: Anatomy, finding: Finding, radius: float, rng: np.random.Generator) -> Floats:
    """A place in the zone where a ball of ``radius`` mm fits in lung and nothing dense lies before it."""
    side, lung = finding.side, anatomy.lungs[finding.side]
    low, high = {"upper": (48, 104), "mid": (-6, 46), "lower": (-72, -8)}[finding.site]
    z = rng.uniform(low, high, _TRIES)
    # Where the zone is full or hidden, a place near it will do.
    z[_TRIES // 2 :] += rng.uniform(-20, 20, _TRIES - _TRIES // 2)
    x0, x1, y0, y1 = lung.outline(z)
    x = x0 + (x1 - x0) * rng.random(_TRIES)
    y = (y0 + y1) / 2 + (y1 - y0) * rng.uniform(-0.28, 0.28, _TRIES)
    points = np.column_stack([x, y, z])
    ball = points[:, None] + np.vstack([np.zeros(3), np.eye(3), -np.eye(3)]) * radius
    inside = anatomy.in_lung(side, ball.reshape(-1, 3)).reshape(_TRIES, -1).mean(axis=1)
    return np.asarray(points[np.argmax(inside - _hidden(anatomy, ball))])


_TRIES = 120
_HILUM_MM = 50.0


def _hidden(anatomy: Anatomy, points: Floats) -> Floats:
    """Share of each row of points (N, M, 3) that the hilum or an organ covers on a frontal film."""
    covered = np.abs(points[..., 0]) < _HILUM_MM
    for organ in anatomy.organs.values():
        centre, half, _, _ = organ.extent(points[..., 2], "frontal")
        covered |= np.abs(points[..., 0] - centre) < half
    return np.asarray(covered.mean(axis=1))


def _nodule(anatomy: Anatomy, finding: Finding, owner: int, rng: np.random.Generator) -> None:
    radius = finding.size_mm / 2
    centre = _spot(anatomy, finding, radius + _CLEAR_MM, rng)
    radii = radius * rng.uniform(0.88, 1.06, 3)
    anatomy.lesions.append(Ellipsoid.of(centre, radii, _NODULE_HU, soft=False, owner=owner))


def _granuloma(anatomy: Anatomy, finding: Finding, owner: int, rng: np.random.Generator) -> None:
    radius = finding.size_mm / 2
    centre = _spot(anatomy, finding, radius + _CLEAR_MM, rng)
    anatomy.lesions.append(Ellipsoid.of(centre, radius * rng.uniform(0.9, 1, 3), _CALCIUM_HU, soft=False, owner=owner))


_NODULE_HU, _CALCIUM_HU = 1300.0, 3600.0
_CLEAR_MM = 6.0
"""Free lung around a small lesion: at the wall and beside the heart a reader would miss it."""


def _mass(anatomy: Anatomy, finding: Finding, owner: int, rng: np.random.Generator) -> None:
    """A lobulated, spiculated lump."""
    radius = finding.size_mm / 2
    centre = _spot(anatomy, finding, radius * 0.9, rng)
    radii = radius * rng.uniform(0.8, 0.98, 3)
    anatomy.lesions.append(Ellipsoid.of(centre, radii, 890.0, soft=False, owner=owner))
    for _ in range(6):
        heading = rng.normal(0, 1, 3)
        heading /= np.linalg.norm(heading)
        lobe = centre + heading * radii * 0.85
        anatomy.lesions.append(Ellipsoid.of(lobe, [radius * 0.42] * 3, 500.0, soft=True, owner=owner))
    reach = rng.normal(0, 1, (14, 3))
    reach *= radius / np.linalg.norm(reach, axis=1, keepdims=True)
    ends = centre + reach * (1.2 + 0.25 * rng.random((14, 1)))
    spikes = straight_rods(centre + reach * 0.85, ends, 0.9, 880.0, owner=owner)
    anatomy.tubes.append(_within_lung(anatomy, finding.side, spikes))


def _consolidation(anatomy: Anatomy, finding: Finding, owner: int, rng: np.random.Generator) -> None:
    """A patch of filled airspace with a ragged edge."""
    radius = (30.0, 39.0, 50.0)[finding.grade] * rng.uniform(0.92, 1.08)
    centre = _spot(anatomy, finding, radius * 0.7, rng)
    for _ in range(30):
        heading = rng.normal(0, 1, 3)
        heading *= rng.random() ** 0.5 / np.linalg.norm(heading)
        blob = centre + heading * radius * np.array([0.95, 0.95, 0.8])
        size = radius * rng.uniform(0.34, 0.64, 3)
        anatomy.lesions.append(Ellipsoid.of(blob, size, 430.0, soft=True, owner=owner))


def _atelectasis(anatomy: Anatomy, finding: Finding, owner: int, rng: np.random.Generator) -> None:
    """Plates of collapsed lung, seen edge on, over a raised diaphragm."""
    side = finding.side
    sign = -1.0 if side == "right" else 1.0
    dome = _top(anatomy.organs[f"{side} dome"])
    lower = finding.site == "lower"
    floor = max(dome, _lung_floor(anatomy.lungs[side]))
    base = floor + rng.uniform(13, 22) if lower else rng.uniform(4, 28)
    for number in range(1 + finding.grade):
        tilt = np.deg2rad(rng.uniform(6, 20)) * rng.choice([-1, 1] if number else [1])
        axes = np.array([[np.cos(tilt), 0, -np.sin(tilt) * sign], [0, 1, 0], [np.sin(tilt) * sign, 0, np.cos(tilt)]])
        x = sign * (rng.uniform(70, 84) - 5 * number)
        centre = (x, rng.uniform(-12, 12), base + 13 * number)
        radii = ((rng.uniform(30, 38) + 3 * finding.grade) * (1 - 0.15 * number), 30.0, 2.6 + 0.7 * finding.grade)
        anatomy.lesions.append(Ellipsoid.of(centre, radii, 720.0, soft=False, owner=owner, axes=axes))
    haze = (sign * 74, 8.0, base + 5)
    anatomy.lesions.append(Ellipsoid.of(haze, (44, 40, 14), 130.0 + 40 * finding.grade, soft=True, owner=owner))


def _lung_floor(lung: Solid) -> float:
    return float(LEVELS[np.flatnonzero(lung.x1 - lung.x0 > 60)[0]])


def _edema(anatomy: Anatomy, finding: Finding, owner: int, rng: np.random.Generator) -> None:
    """Bat-wing haze about both hila and septal lines at the sides of the lower lungs."""
    for side in SIDES:
        sign = -1.0 if side == "right" else 1.0
        for _ in range(11):
            out, up = rng.uniform(8, 52), rng.normal(0, 30)
            centre = (sign * (32 + out * (1 - abs(up) / 130)), rng.uniform(-25, 40), up + 4)
            radii = rng.uniform(22, 38, 3)
            hu = (110.0, 160.0, 220.0)[finding.grade] * rng.uniform(0.7, 1.3)
            anatomy.lesions.append(Ellipsoid.of(centre, radii, hu, soft=True, owner=owner))
        lung = anatomy.lungs[side]
        for z in rng.uniform(-75, -5, 7 + 3 * finding.grade):
            wall = float(np.interp(z, LEVELS, lung.x1 if sign > 0 else lung.x0)) - sign * 2
            y = rng.uniform(-15, 25)
            line = np.array([[wall, y, z], [wall - sign * rng.uniform(13, 22), y + 3, z + rng.uniform(-1, 3)]])
            tube = round_tube(line, 0.9, 890.0)
            anatomy.tubes.append(_within_lung(anatomy, side, tube))


def _device(anatomy: Anatomy, finding: Finding, owner: int, rng: np.random.Generator) -> None:
    anatomy.tubes += place_device(finding, owner, anatomy, rng)


_LESIONS: dict[str, Callable[[Anatomy, Finding, int, np.random.Generator], None]] = {
    "lung nodule": _nodule,
    "calcified granuloma": _granuloma,
    "lung mass": _mass,
    "consolidation": _consolidation,
    "atelectasis": _atelectasis,
    "pulmonary edema": _edema,
    "support device": _device,
}


def _within_lung(anatomy: Anatomy, side: str, tube: Tube) -> Tube:
    return tube.keep(anatomy.in_lung(side, tube.points))


def _broken_rib(anatomy: Anatomy, path: Floats, number: int, finding: Finding, owner: int) -> list[Tube]:
    """A rib with a gap on its posterior arc, its outer part pushed down and out, callus and a haematoma."""
    rng = np.random.default_rng([finding.seed, number])
    offset = _from_break(path, rng)
    shift = (10.0 + 2.5 * finding.grade) * np.exp(-np.clip(offset, 0, None) / 40) * (offset > 0)
    broken = path.copy()
    broken[:, 2] -= shift
    broken[:, 0] += np.sign(path[:, 0]) * shift * 0.3
    gap = 2.2 + 0.5 * finding.grade
    tubes: list[Tube] = []
    for part in (offset < -gap, offset > gap):
        near = part & (np.abs(offset) < 14)
        for chosen, whose in ((part & ~near, -1), (near, owner)):
            if chosen.any():
                for tube in rib_tubes(broken, number, owner=whose):
                    tubes.append(tube.keep(chosen))
    ends = np.array([np.argmin(np.abs(offset + gap + 1)), np.argmin(np.abs(offset - gap - 1))])
    radius = 6.5 + 0.7 * finding.grade
    callus = np.full(len(ends), 4 / 3 * np.pi * radius**3)
    anatomy.lesions.append(_haematoma(broken[ends], finding.grade, owner))
    return [*tubes, Tube(broken[ends], np.full((len(ends), 3), radius), callus, 1700.0, owner)]


def _from_break(path: Floats, rng: np.random.Generator) -> Floats:
    """Distance in mm along a rib from a break where it is seen from the front, between spine and axilla."""
    aside = np.abs(path[:, 0])
    widest = int(np.argmax(aside))
    at = int(np.argmin(np.abs(aside[:widest] - rng.uniform(0.64, 0.8) * aside[widest])))
    along = np.cumsum(np.linalg.norm(np.diff(path, axis=0, prepend=path[:1]), axis=1))
    return np.asarray(along - along[at])


def _haematoma(ends: Floats, grade: int, owner: int) -> Ellipsoid:
    """Blood between the broken ends (2, 3) and the pleura, which bulges into the lung: long along the rib."""
    course = ends[1] - ends[0]
    course[2] = 0.0
    course /= np.linalg.norm(course)
    up = np.array([0.0, 0.0, 1.0])
    axes = np.column_stack([course, np.cross(up, course), up])
    # Both centre lines lie a rib's half width outside the pleura.
    inward = axes[:, 1] * -np.sign(axes[:, 1] @ (ends.mean(axis=0) * [1, 1, 0]))
    radii = np.array([18.0, 9.0, 11.0]) + 1.5 * grade
    return Ellipsoid.of(ends.mean(axis=0) + 5.0 * inward, radii, 890.0, soft=True, owner=owner, axes=axes)
