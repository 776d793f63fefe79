"""Damaged and hostile volumes end in one clear refusal, never in another error or in unbounded memory."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

from rayzero.studies.errors import StudyFileError
from rayzero.studies.sandbox import Sandbox
from rayzero.studies.study import Image
from rayzero.studies.volumes import read_volume
from rayzero.studies.voxels import VolumeHeader
from tests.studies.scans import SPACING, chest, nifti_bytes, npz_bytes, series, zipped

HEADER = VolumeHeader(axes=((0, 0, 1), (0, 1, 0), (1, 0, 0)), spacing_mm=SPACING)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


def _nifti(rng: np.random.Generator) -> bytes:
    """The header is where the lies are: change bytes there, or cut the file, before it is compressed."""
    data = bytearray(nifti_bytes(chest(), zipped=False, version=int(rng.integers(1, 3))))
    for place in rng.integers(0, 360, int(rng.integers(1, 6))):
        data[place] = rng.integers(0, 256)
    if rng.random() < 0.3:
        data = data[: int(rng.integers(0, len(data)))]
    return gzip.compress(bytes(data), 1) if rng.random() < 0.5 else bytes(data)


def _mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """``data`` cut short, or with a few bytes changed anywhere."""
    changed = bytearray(data)
    if rng.random() < 0.3:
        return bytes(changed[: int(rng.integers(1, len(changed)))])
    for place in rng.integers(0, len(changed), int(rng.integers(1, 20))):
        changed[place] = rng.integers(0, 256)
    return bytes(changed)


def _packed(rng: np.random.Generator) -> bytes:
    return _mutated(nifti_bytes(chest()), rng)


def _series(rng: np.random.Generator) -> bytes:
    files = series(chest())
    name = str(rng.choice(list(files)))
    return zipped({**files, name: _mutated(files[name], rng)})


def _npz(rng: np.random.Generator) -> bytes:
    return _mutated(npz_bytes(ct=chest()), rng)


def _read(read: Callable[..., Image], data: bytes, header: VolumeHeader | None) -> Image | StudyFileError:
    try:
        return read(data, header=header)
    except StudyFileError as error:
        return error


@pytest.mark.parametrize(("make", "count"), [(_nifti, 200), (_packed, 60), (_series, 60), (_npz, 60)])
def test_mutants_are_read_or_refused_with_a_reason(make: Callable[[np.random.Generator], bytes], count: int) -> None:
    read = refused = 0
    for seed in range(count):
        data = make(np.random.default_rng(seed))
        image = _read(read_volume, data, HEADER if make is _npz else None)
        if isinstance(image, StudyFileError):
            assert image.stage in {"open", "header", "decode", "pixels"}
            assert 10 < len(image.reason) < 400, image.reason
            refused += 1
        else:
            assert len(image.pixels) == 2 * int(np.prod(image.shape))
            assert all(0 < step < np.inf for step in image.spacing_mm)
            read += 1
    assert refused > count // 5
    assert read + refused == count


@pytest.mark.parametrize(("make", "count"), [(_nifti, 200), (_packed, 60), (_series, 60), (_npz, 60)])
def test_mutants_fare_no_differently_in_a_confined_process(
    sandbox: Sandbox, make: Callable[[np.random.Generator], bytes], count: int
) -> None:
    header = HEADER if make is _npz else None
    processes: set[int] = set()
    for seed in range(count):
        data = make(np.random.default_rng(seed))
        here = _read(partial(read_volume, anonymous=True), data, header)
        there = _read(sandbox.read_volume, data, header)
        if isinstance(here, StudyFileError):
            assert isinstance(there, StudyFileError)
            assert (there.stage, there.reason) == (here.stage, here.reason)
        else:
            assert there == here
        processes.update(sandbox.processes())
    assert len(processes) == 1  # none of them killed it


def _peak(data: bytes, header: VolumeHeader | None = None) -> tuple[int, str]:
    """Bytes that reading ``data`` allocates at its height, and why it was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(StudyFileError) as caught:
            read_volume(data, header=header)
        return tracemalloc.get_traced_memory()[1], caught.value.reason
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_is_not_inflated_beyond_its_header() -> None:
    """256 MB of zeros behind the header of a small volume; and no header at all."""
    head = nifti_bytes(chest(), zipped=False)
    peak, reason = _peak(gzip.compress(head + bytes(2**28), 1))
    assert "goes on beyond" in reason
    assert peak < 16 * 2**20
    peak, reason = _peak(gzip.compress(bytes(2**28), 1))
    assert "not NIfTI" in reason
    assert peak < 16 * 2**20


def test_a_header_that_announces_too_much_costs_nothing() -> None:
    huge = nifti_bytes(chest(), dim=[3, 1000, 1000, 1000, 1, 1, 1, 1])
    peak, reason = _peak(huge)
    assert "cut short" in reason
    assert peak < 16 * 2**20
    peak, reason = _peak(nifti_bytes(chest(), dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]))
    assert "beyond" in reason
    assert peak < 16 * 2**20


def test_zip_bombs_are_refused_by_what_they_announce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayzero.studies.volumes._MAX_BYTES", 2**20)
    bomb = zipped({f"{k}.dcm": bytes(2**20) for k in range(3)})
    peak, reason = _peak(bomb)
    assert "expands to 3,145,728 bytes" in reason
    assert peak < 16 * 2**20
    many = zipped({f"{k}.dcm": b"x" for k in range(5000)})
    assert "5000 files" in _peak(many)[1]


def test_an_archive_that_understates_its_members_is_refused() -> None:
    data = bytearray(zipped({"ct.npy": bytes(2**20), "b": b"x"}))
    start = data.index(b"PK\x01\x02")
    data[start + 24 : start + 28] = (100).to_bytes(4, "little")  # uncompressed size of the first member
    with pytest.raises(StudyFileError):
        read_volume(bytes(data), header=HEADER)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(bytes(data))).read("ct.npy")
