"""Files as they arrive when something went wrong, or someone meant harm: seeded damage to good ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from pydicom import FileDataset, uid

from tests.studies.films import dataset, encode, lossy_syntaxes, lut, ramp, raster, syntaxes


def originals() -> list[bytes]:
    """One small film in every coding, with tables, and the two raster formats; the same each time."""
    table = lut("VOI", first=0, values=list(range(0, 4096, 4)), bits=12)
    modality = lut("Modality", first=0, values=list(range(4096)), bits=16)
    kinds = [(dataset(ramp(), WindowCenter=9, WindowWidth=99), syntax) for syntax in syntaxes()]
    kinds += [(dataset(ramp(8).astype(np.uint8), bits=8), uid.JPEGBaseline8Bit)]
    kinds += [(dataset(ramp()), syntax) for syntax in lossy_syntaxes() if syntax != uid.JPEGBaseline8Bit]
    kinds += [(dataset(ramp(), VOILUTSequence=[table], ModalityLUTSequence=[modality]), None)]
    films = [encode(_named(film, number), syntax) for number, (film, syntax) in enumerate(kinds)]
    return [*films, raster(ramp(16)), raster(ramp(8).astype(np.uint8), "JPEG")]


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """``count`` damaged files; the same for the same seed."""
    rng = np.random.default_rng(seed)
    sources = originals()
    for number in range(count):
        data = sources[int(rng.integers(len(sources)))]
        yield _DAMAGE[number % len(_DAMAGE)](bytearray(data), rng)


def _flip_bits(data: bytearray, rng: np.random.Generator) -> bytes:
    for position in rng.integers(0, len(data), int(rng.integers(1, 40))):
        data[position] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _flip_header_bits(data: bytearray, rng: np.random.Generator) -> bytes:
    for position in rng.integers(128, min(len(data), 1400), int(rng.integers(1, 12))):
        data[position] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _truncate(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: int(rng.integers(0, len(data)))])


def _lie_about_a_length(data: bytearray, rng: np.random.Generator) -> bytes:
    """Two or four bytes of the header become an extreme number: mostly a length, rows, columns or frames."""
    position = int(rng.integers(132, min(len(data), 1400) - 4))
    value = int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]))
    data[position : position + 4] = struct.pack("<I", value)[: 4 if value > 0xFFFF else 2].ljust(4, b"\0")
    return bytes(data)


def _lie_about_the_size(data: bytearray, rng: np.random.Generator) -> bytes:
    """Rows, Columns or NumberOfFrames name a bomb, in the header and sometimes in the coded image as well."""
    size = struct.pack("<H", int(rng.choice([0, 1, 8191, 16384, 65535])))
    for tag in (b"\x28\x00\x10\x00", b"\x28\x00\x11\x00"):
        found = data.find(tag)
        if found > 0 and rng.random() < 0.8:
            data[found + 8 : found + 10] = size
    if rng.random() < 0.5:
        for marker in (b"\xff\xc0\x00", b"\xff\xc1\x00", b"\xff\xc3\x00", b"\xff\xf7\x00"):
            found = data.find(marker)
            if found > 0:
                data[found + 5 : found + 9] = size[::-1] * 2
        found = data.find(b"\xff\x4f\xff\x51")
        if found > 0:
            data[found + 8 : found + 16] = struct.pack(">II", *[struct.unpack("<H", size)[0]] * 2)
    return bytes(data)


def _swap_blocks(data: bytearray, rng: np.random.Generator) -> bytes:
    size = int(rng.integers(1, max(2, len(data) // 4)))
    first, second = (int(value) for value in rng.integers(0, len(data) - size, 2))
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )
    return bytes(data)


def _nest(data: bytearray, rng: np.random.Generator) -> bytes:
    """Sequences within sequences, deeper than any parser's stack, before the film's own elements."""
    depth = int(rng.integers(10, 20000))
    item = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return bytes(data[:340]) + item * depth + bytes(data[340:])


def _inflate(data: bytearray, rng: np.random.Generator) -> bytes:
    """A deflated dataset that expands a thousandfold, to one or two million empty elements or past all limits."""
    return _bomb(int(rng.choice([2, 4, 160])))


@cache
def _bomb(megabytes: int) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(deflater.compress(bytes(2**20)) for _ in range(megabytes)) + deflater.flush()
    film = encode(_named(dataset(ramp()), 0), uid.DeflatedExplicitVRLittleEndian)
    return film[: 144 + int.from_bytes(film[140:144], "little")] + bomb


def _named(film: FileDataset, number: int) -> FileDataset:
    film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    return film


_DAMAGE: tuple[Callable[[bytearray, np.random.Generator], bytes], ...] = (
    *(_flip_bits, _flip_header_bits, _truncate, _lie_about_a_length, _lie_about_the_size) * 4,
    *(_swap_blocks,) * 3,
    _nest,
    _inflate,
)
