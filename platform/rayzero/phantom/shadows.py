"""Shadows of solids on a film: chords, and the stretches of each ray that run through lung, a tile at a time.

Most tiles of a film meet few organs or none, and the arrays of one tile stay in the processor's cache: this is
what makes exact path lengths affordable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .solids import Bools, Floats, Solid, View, arc, block_of

Block = tuple[slice, slice]
Chord = tuple[Floats, Floats]

_TILE = 64
"""Rows and columns of a tile."""


class Shadow:
    """A solid's chords on one film, with all that is the same along a row worked out once."""

    def __init__(self, solid: Solid, view: View, across: Floats, z: Floats) -> None:
        extent = solid.extent(z, view)
        centre, half, middle, depth = extent
        there = half > 0
        self.window: Block = block_of(extent, across)
        self._power = solid.power
        self._across = across.astype(np.float32)
        self._centre = centre.astype(np.float32)[:, None]
        self._middle = middle.astype(np.float32)[:, None]
        # No depth where there is no section: rays that meet nothing get a chord of no length.
        depth = np.where(there, depth, 0)
        scale = 1 / np.maximum(half, 1e-3)
        round_section = solid.power == 2.0
        self._scale = (scale * depth if round_section else scale).astype(np.float32)[:, None]
        self._depth = (depth * depth if round_section else depth).astype(np.float32)[:, None]
        self._bounds = _bounds(there, [centre - half, middle - depth], [centre + half, middle + depth])

    def chords(self, block: Block) -> Chord:
        """Where each ray of the block enters and leaves, in mm; the two are equal where it misses."""
        reach = self._reach(block)
        middle = self._middle[block[0]]
        return middle - reach, np.add(middle, reach, out=reach)

    def thickness(self, block: Block) -> Floats:
        """Path length in mm of each ray of the block."""
        reach = self._reach(block)
        reach *= 2
        return reach

    def meets(self, other: Shadow, band: int, left: float, right: float) -> bool:
        """Whether it may reach the columns from ``left`` to ``right`` mm and the depth of ``other`` in a band."""
        low, front, high, back = self._bounds[band]
        _, other_front, _, other_back = other._bounds[band]
        return low < right and high > left and front < other_back and back > other_front

    def _reach(self, block: Block) -> Floats:
        """Half the chord."""
        rows, cols = block
        place = self._across[cols] - self._centre[rows]
        place *= self._scale[rows]
        if self._power == 2.0:
            # The scale takes the depth in, which saves a pass over the tile.
            np.multiply(place, place, out=place)
            np.subtract(self._depth[rows], place, out=place)
            np.maximum(place, 0, out=place)
            return np.asarray(np.sqrt(place, out=place))
        np.abs(place, out=place)
        np.minimum(place, 1, out=place)
        place = arc(place, self._power)
        place *= self._depth[rows]
        return place


def _bounds(there: Bools, low: list[Floats], high: list[Floats]) -> list[list[float]]:
    """Per band of ``_TILE`` rows: least of each of ``low``, greatest of each of ``high``; out of reach where empty."""
    starts = np.arange(0, len(there), _TILE)
    least = [np.minimum.reduceat(np.where(there, e, np.inf), starts) for e in low]
    greatest = [np.maximum.reduceat(np.where(there, e, -np.inf), starts) for e in high]
    bounds: list[list[float]] = np.stack([*least, *greatest], axis=1).tolist()
    return bounds


def tiles(window: Block) -> Iterator[Block]:
    """The window cut along a grid of tiles that is fixed to the film."""
    rows, cols = window
    for top in range(rows.start - rows.start % _TILE, rows.stop, _TILE):
        for left in range(cols.start - cols.start % _TILE, cols.stop, _TILE):
            yield (
                slice(max(top, rows.start), min(top + _TILE, rows.stop)),
                slice(max(left, cols.start), min(left + _TILE, cols.stop)),
            )


def within(block: Block, window: Block) -> Block:
    """The block as counted from the corner of the window."""
    rows, cols = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(block, window, strict=True))
    return rows, cols


@dataclass(frozen=True)
class Gaps:
    """The stretches of each ray of ``window`` in the first space and in no organ; path lengths in all the spaces.

    ``starts`` and ``ends`` (stretches, rows, columns) in mm; ``lengths`` one (rows, columns) a space.
    """

    window: Block
    starts: Floats
    ends: Floats
    lengths: list[Floats]

    def within(self, block: Block) -> list[Chord]:
        """The stretches over a block counted from the window's corner, fewest first dropped where none is left."""
        pairs = [(start[block], end[block]) for start, end in zip(self.starts, self.ends, strict=True)]
        return [(start, end) for start, end in pairs if (end > start).any()]


def lung_gaps(
    window: Block, spaces: Sequence[Shadow], organs: Sequence[Shadow], across: Floats, wanted: Sequence[Block]
) -> Gaps:
    """Walk every ray of the window through the spaces, past the organs; keep the stretches of ``wanted`` blocks."""
    shape = tuple(s.stop - s.start for s in window)
    starts = np.zeros((len(organs) + 1, *shape), np.float32)
    ends = np.zeros_like(starts)
    lengths = [np.zeros(shape, np.float32) for _ in spaces]
    most = 1
    for tile in tiles(window):
        band, left, right = tile[0].start // _TILE, float(across[tile[1].start]), float(across[tile[1].stop - 1])
        if not any(space.meets(space, band, left, right) for space in spaces):
            continue
        near = [o.chords(tile) for o in organs if any(o.meets(space, band, left, right) for space in spaces)]
        enter, leave = _sorted([o[0] for o in near]), _sorted([o[1] for o in near])
        place = within(tile, window)
        keep = any(_overlap(tile, block) for block in wanted)
        for number, space in enumerate(spaces):
            length = lengths[number][place]
            for k, (start, end) in enumerate(_stretches(space.chords(tile), enter, leave)):
                length += end
                length -= start
                if keep and number == 0:
                    starts[k][place], ends[k][place] = start, end
        most = max(most, len(near) + 1)
    return Gaps(window, starts[:most], ends[:most], lengths)


def _overlap(one: Block, other: Block) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _stretches(space: Chord, enter: list[Floats], leave: list[Floats]) -> Iterator[Chord]:
    """Stretches of each ray inside ``space`` but inside no organ, each as (start, end) with end >= start.

    With all entries and all exits sorted on their own, exactly i organs lie behind a point that is in none,
    so it is between the i-th exit and the (i+1)-th entry: K organs leave at most K + 1 stretches.
    """
    start, stop = space
    for first, last in zip(enter, leave, strict=True):
        end = np.minimum(first, stop)
        yield start, np.maximum(end, start, out=end)
        start = np.maximum(last, space[0])
    yield start, np.maximum(stop, start)


def _sorted(arrays: list[Floats]) -> list[Floats]:
    """The arrays sorted against each other element by element: exchanges of whole arrays beat a sort per ray."""
    ordered: list[Floats] = []
    for array in arrays:
        for k, smaller in enumerate(ordered):
            ordered[k], array = np.minimum(smaller, array), np.maximum(smaller, array)
        ordered.append(array)
    return ordered
