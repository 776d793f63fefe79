"""Radiographs of an anatomy: exact path lengths, then the physics and the look of a digital detector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .anatomy import HU, SIDES, Anatomy
from .pathology import build_anatomy
from .patient import Study
from .solids import Bools, Floats, Solid, View, air_gaps
from .tubes import doubled, splat_film

FIELD_MM = 342.0
CENTRE_Z = -8.0
WATER_PER_MM = 0.0193
"""Attenuation of water at the 70 keV that both the films and the CT assume."""

VIEWS: tuple[View, ...] = ("frontal", "lateral")


@dataclass(frozen=True)
class Region:
    """Where one finding shows: its index in ``study.findings``, a boolean mask and its tight box.

    The mask has the shape of its film (rows, columns) or volume (slices, rows, columns). ``box`` is
    (x0, y0, x1, y1) in pixels, half-open: x1 and y1 are one past the last marked column and row.
    """

    finding: int
    mask: Bools
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Film:
    """``pixels`` float32 (size, size) in [0, 1], dense tissue bright; ``pixel_mm`` spacing; where findings show."""

    pixels: Floats
    pixel_mm: float
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Films:
    """The two views of one study: ``pa`` (patient's left on the right) and ``lateral`` (front on the left)."""

    pa: Film
    lateral: Film


def film_axes(size: int) -> tuple[Floats, Floats]:
    """Positions in mm of the film's columns (x or y, rising) and rows (z, falling), each (size,)."""
    offset = (np.arange(size) - (size - 1) / 2) * FIELD_MM / size
    return offset, CENTRE_Z - offset


def render_films(study: Study, size: int = 512) -> Films:
    """Both films of a study, ``size`` pixels square, with the region of each finding that shows on them."""
    anatomy = build_anatomy(study)
    films = []
    for number, view in enumerate(VIEWS):
        path, traces = path_map(anatomy, view, *film_axes(size))
        rng = np.random.default_rng([study.pose.seed, number])
        pixels = expose(path, study.pose.noise, FIELD_MM / size, rng)
        films.append(Film(pixels, FIELD_MM / size, _regions(study, view, traces, size)))
    return Films(*films)


def path_map(anatomy: Anatomy, view: View, across: Floats, z: Floats) -> tuple[Floats, dict[int, Floats]]:
    """Line integral of density along each ray, in mm of water, float32 (len(z), len(across)).

    Also what each finding adds to it, keyed by the finding's index: the evidence its mask is drawn from.
    """
    total = (1 + HU["fat"] / 1000) * anatomy.body.thickness(view, across, z)
    total += (HU["soft"] - HU["fat"]) / 1000 * anatomy.muscle.thickness(view, across, z)
    for breast in anatomy.breasts:
        total += (1 + HU["breast"] / 1000) * _outside(breast, anatomy.body, view, across, z)
    total += SPINE_HU / 1000 * anatomy.spine.thickness(view, across, z)
    for solid, _ in anatomy.gas:
        total += (HU["air"] - HU["soft"]) / 1000 * solid.thickness(view, across, z)
    traces: dict[int, Floats] = {}
    for side in SIDES:
        _add_lung(anatomy, side, view, across, z, total, traces)
    for name, owner in anatomy.silhouettes:
        traces[owner] = anatomy.organs[name].thickness(view, across, z)
    for tube in _merged(anatomy, view):
        added = splat_film(tube[0], tube[1], tube[2], [z, across])
        total += added
        if tube[3] >= 0:
            _trace(traces, tube[3], total.shape)[...] += added
    return total, traces


SPINE_HU = 140.0


def _outside(solid: Solid, body: Solid, view: View, across: Floats, z: Floats) -> Floats:
    gaps = air_gaps(solid.chords(view, across, z), [body.chords(view, across, z)])
    return _length(gaps)


def _add_lung(
    anatomy: Anatomy, side: str, view: View, across: Floats, z: Floats, total: Floats, traces: dict[int, Floats]
) -> None:
    """Replace the soft tissue of the trunk by one lung and what lies between it and the wall, a band at a time."""
    rows, cols = anatomy.cavities[side].window(view, across, z)
    for top in range(rows.start, rows.stop, _BAND_ROWS):
        band = (slice(top, min(top + _BAND_ROWS, rows.stop)), cols)
        views = {owner: _trace(traces, owner, total.shape)[band] for owner in _owners(anatomy, side)}
        _add_band(anatomy, side, view, across[cols], z[band[0]], total[band], views)


def _owners(anatomy: Anatomy, side: str) -> set[int]:
    lesions = {lesion.owner for lesion in anatomy.lesions if lesion.owner >= 0}
    return lesions | set(anatomy.lucent) | {owner for where, owner in anatomy.emptied if where == side}


def _add_band(
    anatomy: Anatomy, side: str, view: View, across: Floats, z: Floats, total: Floats, traces: dict[int, Floats]
) -> None:
    cavity, lung = anatomy.cavities[side], anatomy.lungs[side]
    organs = [organ.chords(view, across, z) for organ in anatomy.organs.values() if _beside(organ, cavity, z)]
    gaps = air_gaps(lung.chords(view, across, z), organs)
    air = _length(gaps)
    total += (anatomy.lung_hu[side] - HU["soft"]) / 1000 * air
    if lung is not cavity:
        space = np.maximum(_length(air_gaps(cavity.chords(view, across, z), organs)) - air, 0)
        total += (anatomy.space_hu[side] - HU["soft"]) / 1000 * space
        if anatomy.space_hu[side] == HU["air"]:
            # The visceral pleura between two bodies of gas is the line a reader looks for.
            edge = _length(air_gaps(lung.grown(_PLEURA_MM).chords(view, across, z), organs)) - air
            total += (HU["soft"] - HU["air"]) / 1000 * np.minimum(edge, space)
        for owner in (owner for where, owner in anatomy.emptied if where == side):
            traces[owner] += space
    for owner in anatomy.lucent:
        traces[owner] += air
    sign = -1.0 if side == "right" else 1.0
    for lesion in anatomy.lesions:
        middle, reach = lesion.centre[2], lesion.reach[2]
        if sign * lesion.centre[0] <= 0 or middle + reach < z[-1] or middle - reach > z[0]:
            continue
        inner = lesion.window(view, across, z)
        block = [(start[inner], end[inner]) for start, end in gaps]
        added = np.float32(lesion.hu / 1000) * lesion.path(view, across[inner[1]], z[inner[0]], block)
        total[inner] += added
        if lesion.owner >= 0:
            traces[lesion.owner][inner] += added


def _beside(organ: Solid, cavity: Solid, z: Floats) -> bool:
    """Whether the organ reaches into the side of the chest that the cavity is in, at any of the levels ``z``."""
    left, right, front, back = organ.outline(z)
    low, high, _, _ = cavity.outline(z)
    return bool(((right > left) & (back > front) & (right > low) & (left < high)).any())


_BAND_ROWS = 64
"""Rows worked on at once: few enough for the processor's cache, and for most organs to be missing from a band."""

_PLEURA_MM = 0.6


def _length(gaps: list[tuple[Floats, Floats]]) -> Floats:
    return np.asarray(sum((end - start for start, end in gaps), np.float32(0)))


def _trace(traces: dict[int, Floats], owner: int, shape: tuple[int, ...]) -> Floats:
    return traces.setdefault(owner, np.zeros(shape, np.float32))


def _merged(anatomy: Anatomy, view: View) -> list[tuple[Floats, Floats, Floats, int]]:
    """All tubes of one owner as one set of points: (z, across) places and radii, and volume weighted by density."""
    axes = [2, 0] if view == "frontal" else [2, 1]
    groups: dict[int, list[tuple[Floats, Floats, Floats]]] = {}
    for tube in anatomy.tubes:
        part = (tube.points[:, axes], tube.radii[:, axes], tube.volume * (tube.hu / 1000))
        groups.setdefault(tube.owner, []).append(part)
    merged = []
    for owner, parts in groups.items():
        points, radii, volume = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        merged.append((points, radii, volume, owner))
    return merged


def expose(path: Floats, noise: float, pixel_mm: float, rng: np.random.Generator) -> Floats:
    """Turn mm of water into display values in [0, 1]: Beer-Lambert, scatter, quantum noise, log and tone curve."""
    detected = path * np.float32(-WATER_PER_MM)
    np.exp(detected, out=detected)
    detected += _SCATTER_SHARE * _wide_blur(detected, 30.0 / pixel_mm)
    grain = rng.standard_normal(path.shape, np.float32)
    grain *= np.float32(noise * np.sqrt(_REFERENCE_SIGNAL))
    grain *= np.sqrt(detected)
    detected += grain
    density = np.log(np.maximum(detected, 1e-5, out=detected), out=detected)
    density *= -1
    # Detectors flatten the broad brightness so that lung and mediastinum are both read on one display.
    broad = _wide_blur(density, 34.0 / pixel_mm)
    density *= _DETAIL_WEIGHT
    broad *= _BROAD_WEIGHT - _DETAIL_WEIGHT
    density += broad
    sparse = (slice(None, None, max(len(path) // 64, 1)),) * 2
    low, high = np.percentile(density[sparse][path[sparse] > _THICK_MM], [3, 98])
    density -= np.float32(low - _TOE * (high - low))
    density *= np.float32(-_SHOULDER / (high - low))
    np.exp(np.clip(density, -_SHOULDER * _BRIGHTEST, 0, out=density), out=density)
    return np.asarray((1 - density) / np.float32(1 - np.exp(-_SHOULDER * _BRIGHTEST)))


_SCATTER_SHARE = 0.35
_REFERENCE_SIGNAL = 0.05
_BROAD_WEIGHT, _DETAIL_WEIGHT = 0.75, 1.2
_THICK_MM = 60.0
_TOE, _SHOULDER, _BRIGHTEST = 0.06, 1.5, 1.3
"""Tone curve: the lung keeps its contrast, the bright end is compressed."""


def _wide_blur(image: Floats, sigma: float) -> Floats:
    """Gaussian blur of ``sigma`` pixels on a grid coarse enough to be cheap, interpolated back."""
    halvings = 0
    while sigma / 2 ** (halvings + 1) > 3 and image.shape[0] % 2 ** (halvings + 1) == 0:
        halvings += 1
    factor = 2**halvings
    n = image.shape[0] // factor
    small: Floats = image.reshape(n, factor, n, factor).mean(axis=(1, 3))
    small = np.asarray(ndimage.gaussian_filter(small, sigma / factor, mode="nearest"))
    for _ in range(halvings):
        small = doubled(small)
    return np.asarray(small)


def bounding_box(mask: Bools) -> tuple[int, int, int, int]:
    """The tight half-open box (x0, y0, x1, y1) of a mask (rows, columns) that marks something."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


_FAINT_MM = {"cardiomegaly": 10.0, "pleural effusion": 10.0, "pneumothorax": 6.0, "emphysema": 30.0}
_UNSEEN_LATERALLY = {"rib fracture", "pneumothorax"}
_THIN = {"support device"}


def _regions(study: Study, view: View, traces: dict[int, Floats], size: int) -> tuple[Region, ...]:
    """Masks from what each finding adds to the film, one per side for a bilateral finding on the frontal view."""
    regions: list[Region] = []
    across, z = film_axes(size)
    for owner in sorted(traces):
        finding = study.findings[owner]
        if view == "lateral" and finding.name in _UNSEEN_LATERALLY:
            continue
        trace = traces[owner]
        peak = float(trace.max())
        faint = _FAINT_MM.get(finding.name, 2.0)
        mask = trace > max(faint, 0.28 * peak if finding.name not in _THIN else 0.0)
        if finding.name in _THIN:
            mask = ndimage.binary_dilation(mask, iterations=max(round(1.5 * size / 512), 1))
        if finding.name == "cardiomegaly":
            mask &= (z > _heart_floor(study))[:, None]
        parts = [mask]
        if finding.side == "bilateral" and view == "frontal":
            parts = [mask & (across < 0), mask & (across > 0)]
        smallest = 12 * (size / 512) ** 2
        regions += [Region(owner, part, bounding_box(part)) for part in parts if part.sum() > smallest]
    return tuple(regions)


def _heart_floor(study: Study) -> float:
    """The level below which the dome, not the heart, is what the film shows."""
    return -91.0 * study.build.height - study.pose.inspiration_mm - 8.0
