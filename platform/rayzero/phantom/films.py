"""Radiographs of an anatomy: exact path lengths, then the physics and the look of a digital detector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from .anatomy import HU, SIDES, Anatomy
from .pathology import build_anatomy
from .patient import Study
from .shadows import Block, Gaps, Shadow, lung_gaps, tiles
from .solids import Bools, Ellipsoid, Floats, Solid, View
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
    film = _Canvas.blank(view, across, z)
    # The trunk is smooth, and a lateral film, where two lungs overlap, shows no fine edge in them.
    coarse = film.halved()
    body = film.shadow(anatomy.body)
    coarse.add(coarse.shadow(anatomy.body), 1 + HU["fat"] / 1000)
    coarse.add(coarse.shadow(anatomy.muscle), (HU["soft"] - HU["fat"]) / 1000)
    _add_lungs(coarse if view == "lateral" else film, anatomy)
    film.take(coarse)
    for breast in anatomy.breasts:
        film.add_outside(film.shadow(breast), body, 1 + HU["breast"] / 1000)
    film.add(film.shadow(anatomy.spine), SPINE_HU / 1000)
    for solid, _ in anatomy.gas:
        film.add(film.shadow(solid), (HU["air"] - HU["soft"]) / 1000)
    for name, owner in anatomy.silhouettes:
        shadow = film.shadow(anatomy.organs[name])
        film.trace(owner)[shadow.window] = shadow.thickness(shadow.window)
    for tube in _merged(anatomy, view):
        added = splat_film(tube[0], tube[1], tube[2], [z, across])
        film.total[...] += added
        if tube[3] >= 0:
            film.trace(tube[3])[...] += added
    return film.total, film.traces


SPINE_HU = 250.0


@dataclass(frozen=True)
class _Canvas:
    """A film being filled: its view and axes, the path lengths so far, and what each finding adds to them."""

    view: View
    across: Floats
    z: Floats
    total: Floats
    traces: dict[int, Floats]

    @staticmethod
    def blank(view: View, across: Floats, z: Floats) -> _Canvas:
        return _Canvas(view, across, z, np.zeros((len(z), len(across)), np.float32), {})

    def halved(self) -> _Canvas:
        """A blank film of half the rows and columns, or this one where that would lose too much."""
        if len(self.across) % 2 or len(self.z) % 2 or len(self.z) < _FINE_ROWS:
            return self
        return _Canvas.blank(self.view, *(axis.reshape(-1, 2).mean(axis=1) for axis in (self.across, self.z)))

    def take(self, coarse: _Canvas) -> None:
        """Add what was drawn on the film that ``halved`` gave."""
        if coarse is not self:
            self.total[...] += doubled(coarse.total)
            for owner, trace in coarse.traces.items():
                self.trace(owner)[...] += doubled(trace)

    def shadow(self, solid: Solid) -> Shadow:
        return Shadow(solid, self.view, self.across, self.z)

    def trace(self, owner: int) -> Floats:
        return self.traces.setdefault(owner, np.zeros(self.total.shape, np.float32))

    def add(self, shadow: Shadow, density: float) -> None:
        """Fill the solid with a density."""
        for tile in tiles(shadow.window):
            added = shadow.thickness(tile)
            added *= np.float32(density)
            self.total[tile] += added

    def add_outside(self, shadow: Shadow, other: Shadow, density: float) -> None:
        """Fill what of the solid lies outside another."""
        for tile in tiles(shadow.window):
            (enter, leave), (first, last) = shadow.chords(tile), other.chords(tile)
            shared = np.maximum(np.minimum(leave, last) - np.maximum(enter, first), 0)
            self.total[tile] += np.float32(density) * (leave - enter - shared)


_FINE_ROWS = 384
"""Rows from which a film can do with half of them for what is smooth."""


def _add_lungs(film: _Canvas, anatomy: Anatomy) -> None:
    organs = [film.shadow(organ) for organ in anatomy.organs.values()]
    for side in SIDES:
        _add_lung(film, anatomy, side, organs)


def _add_lung(film: _Canvas, anatomy: Anatomy, side: str, organs: list[Shadow]) -> None:
    """Replace the soft tissue of the trunk by one lung, what lies between it and the wall, and its lesions."""
    cavity, lung = anatomy.cavities[side], anatomy.lungs[side]
    spaces = [lung] if lung is cavity else [lung, cavity, lung.grown(_PLEURA_MM)]
    shadows = [film.shadow(space) for space in spaces]
    window = shadows[min(1, len(spaces) - 1)].window
    lesions = _lesions_of(anatomy, side)
    wanted = [lesion.window(film.view, film.across, film.z) for lesion in lesions]
    gaps = lung_gaps(window, shadows, organs, film.across, wanted)
    air, total = gaps.lengths[0], film.total[window]
    total += np.float32((anatomy.lung_hu[side] - HU["soft"]) / 1000) * air
    if lung is not cavity:
        space = np.maximum(gaps.lengths[1] - air, 0)
        total += np.float32((anatomy.space_hu[side] - HU["soft"]) / 1000) * space
        if anatomy.space_hu[side] == HU["air"]:
            # The visceral pleura between two bodies of gas is the line a reader looks for.
            edge = np.minimum(gaps.lengths[2] - air, space)
            total += np.float32((HU["soft"] - HU["air"]) / 1000) * edge
        for owner in (owner for where, owner in anatomy.emptied if where == side):
            film.trace(owner)[window] += space
    for owner in anatomy.lucent:
        film.trace(owner)[window] += air
    _add_lesions(film, lesions, gaps)


def _lesions_of(anatomy: Anatomy, side: str) -> list[Ellipsoid]:
    sign = -1.0 if side == "right" else 1.0
    return [lesion for lesion in anatomy.lesions if sign * lesion.centre[0] > 0]


def _add_lesions(film: _Canvas, lesions: list[Ellipsoid], gaps: Gaps) -> None:
    rows, cols = gaps.window
    across, z = film.across[cols], film.z[rows]
    total = film.total[gaps.window]
    for lesion in lesions:
        inner: Block = lesion.window(film.view, across, z)
        added = lesion.path(film.view, across[inner[1]], z[inner[0]], gaps.within(inner))
        added *= np.float32(lesion.hu / 1000)
        total[inner] += added
        if lesion.owner >= 0:
            film.trace(lesion.owner)[gaps.window][inner] += added


_PLEURA_MM = 0.6


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
    grain = _grain(rng, path.shape)
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


def _grain(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Noise of unit variance: four uniform numbers added up are near enough to normal, and several times faster."""
    words = rng.integers(0, 2**64, shape, np.uint64).view(np.uint16)
    grain = words[:, 0::4].astype(np.float32)
    for k in range(1, 4):
        grain += words[:, k::4]
    grain -= np.float32(2 * (2**16 - 1))
    grain *= np.float32(np.sqrt(3) / 2**16)
    return grain


_SCATTER_SHARE = 0.35
_REFERENCE_SIGNAL = 0.05
_BROAD_WEIGHT, _DETAIL_WEIGHT = 0.62, 1.35
_THICK_MM = 60.0
_TOE, _SHOULDER, _BRIGHTEST = 0.06, 1.3, 1.5
"""Tone curve: the lung keeps its contrast, the bright end is compressed."""


def _wide_blur(image: Floats, sigma: float) -> Floats:
    """Gaussian blur of ``sigma`` pixels on a grid coarse enough to be cheap, interpolated back."""
    coarse, fine = _blur_matrices(len(image), sigma)
    return np.asarray(fine @ (coarse @ image @ coarse.T) @ fine.T)


@cache
def _blur_matrices(size: int, sigma: float) -> tuple[Floats, Floats]:
    """One axis of the blur: (n, size) that averages and blurs, and (size, n) that interpolates back."""
    factor = 1
    while sigma / (2 * factor) > 3 and size % (2 * factor) == 0:
        factor *= 2
    n = size // factor
    blur = ndimage.gaussian_filter1d(np.eye(n), sigma / factor, axis=0, mode="nearest")
    place = (np.arange(size) + 0.5) / factor - 0.5
    fine = np.clip(1 - np.abs(np.clip(place, 0, n - 1)[:, None] - np.arange(n)), 0, None)
    return (np.repeat(blur, factor, axis=1) / factor).astype(np.float32), fine.astype(np.float32)


def bounding_box(mask: Bools) -> tuple[int, int, int, int]:
    """The tight half-open box (x0, y0, x1, y1) of a mask (rows, columns) that marks something."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


_FAINT_MM = {
    "cardiomegaly": 10.0,
    "pleural effusion": 10.0,
    "pneumothorax": 6.0,
    "emphysema": 30.0,
    "rib fracture": 3.0,
}
_UNSEEN_LATERALLY = {"rib fracture", "pneumothorax"}
_MARGIN_PIXELS = {"support device": 1.5, "rib fracture": 4.0}
"""How far, on a film of 512 pixels, the mask of what is thin reaches beyond it."""


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
        margin = _MARGIN_PIXELS.get(finding.name, 0.0)
        mask = trace > max(faint, 0.0 if margin else 0.28 * peak)
        if margin:
            mask = ndimage.binary_dilation(mask, iterations=max(round(margin * size / 512), 1))
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
