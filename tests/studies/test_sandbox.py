"""Reading in a process of its own: the same images, and no file that takes the caller down or holds it up."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from rayzero.studies.errors import StudyFileError
from rayzero.studies.files import read_image
from rayzero.studies.sandbox import Limits, Sandbox
from rayzero.studies.sandbox_window import WINDOW_BYTES, create_window
from rayzero.studies.volumes import read_volume
from rayzero.studies.voxels import VolumeHeader
from tests.studies.films import dataset, encode, film_bytes, lut, ramp, raster, syntaxes
from tests.studies.scans import chest, nifti_bytes, npz_bytes, series, slice_bytes, zipped


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=2) as made:
        yield made


@pytest.mark.parametrize("syntax", syntaxes(), ids=lambda syntax: uid.UID(syntax).name)
def test_every_coding_reads_as_it_does_here(sandbox: Sandbox, syntax: str) -> None:
    data = encode(dataset(ramp(), WindowCenter=7, WindowWidth=9, PhotometricInterpretation="MONOCHROME1"), syntax)
    assert sandbox.read_image(data, name="s1/pa") == read_image(data, name="s1/pa")


def test_rasters_and_curves_pass_too(sandbox: Sandbox) -> None:
    table = lut("VOI", first=0, values=list(range(0, 4096, 16)), bits=12)
    for data in (raster(ramp(16)), raster(ramp(8).astype(np.uint8), "JPEG"), film_bytes(VOILUTSequence=[table])):
        assert sandbox.read_image(data, name="x") == read_image(data, name="x")


def test_volumes_read_as_they_do_here(sandbox: Sandbox) -> None:
    for data in (nifti_bytes(chest()), zipped(series(chest()))):
        assert sandbox.read_volume(data, name="s1/ct") == read_volume(data, name="s1/ct")
    with pytest.raises(StudyFileError, match="file 1 of the series"):
        sandbox.read_volume(zipped({"DOE^JANE.dcm": b"no slice", "other.dcm": b"none"}))


def test_what_a_table_says_of_a_volume_arrives(sandbox: Sandbox) -> None:
    """Axes that turn the array, a spacing that is no binary fraction, and a scale."""
    header = VolumeHeader(
        axes=((0, 0.1, -1), (0, 1, 0.1), (-1, 0, 0)), spacing_mm=(0.1, 0.7, 1 / 3), slope=0.5, intercept=-1024.0
    )
    stored = ((chest().astype(np.int32) + 1024) * 2).astype(np.int16)
    for data in (nifti_bytes(stored), npz_bytes(ct=stored)):
        image = sandbox.read_volume(data, name="s1/ct", header=header)
        assert image == read_volume(data, name="s1/ct", header=header)
        np.testing.assert_array_equal(image.array(), chest()[::-1, :, ::-1])
        assert image.spacing_mm == header.spacing_mm


def test_the_files_of_a_series_read_as_their_zip_does(sandbox: Sandbox) -> None:
    files = series(chest())
    assert sandbox.read_series(files.values(), name="s1/ct") == read_volume(zipped(files), name="s1/ct")
    damaged = [slice_bytes(chest(), 0), b"no slice"]
    with pytest.raises(StudyFileError, match="file 2 of the series: not a DICOM file"):
        sandbox.read_series(damaged)


def test_a_series_beyond_the_limit_is_not_read_on() -> None:
    asked: list[int] = []

    def files() -> Iterator[bytes]:
        for k in range(6):
            asked.append(k)
            yield bytes(1000)

    with Sandbox(limits=Limits(file_bytes=3000)) as small, pytest.raises(StudyFileError, match="beyond 3,000 bytes"):
        small.read_series(files())
    assert asked == [0, 1, 2]


def test_a_refusal_has_its_stage_and_reason(sandbox: Sandbox) -> None:
    with pytest.raises(StudyFileError, match="3 frames") as caught:
        sandbox.read_image(film_bytes(NumberOfFrames=3))
    assert caught.value.stage == "header"


def test_too_many_bytes_are_refused_unread() -> None:
    with Sandbox(limits=Limits(file_bytes=100)) as small, pytest.raises(StudyFileError, match="beyond 100"):
        small.read_image(bytes(101))


def test_memory_is_limited_and_the_process_goes_on() -> None:
    large = encode(dataset(np.zeros((8192, 8192), np.uint16)), uid.JPEGLosslessSV1)
    assert len(large) < 16 * 2**20 < 8192 * 8192 * 2
    with Sandbox(limits=Limits(memory_bytes=96 * 2**20)) as small:
        with pytest.raises(StudyFileError):
            small.read_image(large)
        assert small.read_image(film_bytes()).shape == (64, 96)


def test_time_is_limited_and_the_next_file_reads() -> None:
    slow = encode(dataset(np.zeros((8000, 8000), np.uint16)), uid.JPEGLosslessSV1)
    with Sandbox(limits=Limits(wall_seconds=0.02)) as hurried, pytest.raises((StudyFileError, RuntimeError)):
        hurried.read_image(slow)
    with Sandbox(limits=Limits(cpu_seconds=60)) as patient:
        assert patient.read_image(slow).shape == (8000, 8000)


def test_a_crash_is_a_refusal_and_the_next_file_reads() -> None:
    with Sandbox() as one:
        one.read_image(film_bytes())
        (process,) = one.processes()
        os.kill(process, signal.SIGSTOP)  # it cannot answer, so that it dies with a file in its hands
        killer = threading.Timer(0.3, os.kill, (process, signal.SIGSEGV))
        killer.start()
        threading.Timer(0.4, os.kill, (process, signal.SIGCONT)).start()
        with pytest.raises(StudyFileError, match=r"did not survive the file \(SIGSEGV\)"):
            one.read_image(film_bytes())
        assert one.read_image(film_bytes()).shape == (64, 96)


def test_a_process_that_died_idle_is_replaced() -> None:
    with Sandbox() as one:
        one.read_image(film_bytes())
        (process,) = one.processes()
        os.kill(process, signal.SIGKILL)
        time.sleep(0.2)
        assert one.read_image(film_bytes()).shape == (64, 96)


def test_threads_share_the_processes(sandbox: Sandbox) -> None:
    films = [film_bytes(WindowCenter=number + 1, WindowWidth=3) for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(sandbox.read_image, films))
    assert [image.window[0] for image in images] == [number + 0.5 for number in range(24)]
    assert len(sandbox.processes()) <= 2


def test_a_confined_process_opens_nothing_and_hoards_nothing() -> None:
    program = """
import socket
from rayzero.studies.sandbox_process import confine
confine(64 * 2**20)
for attempt in (lambda: open("/etc/hostname"), socket.socket, lambda: bytearray(80 * 2**20)):
    try:
        attempt()
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["OSError", "OSError", "MemoryError"]


def test_a_process_ends_with_whoever_feeds_it() -> None:
    """Even in the middle of a file, when it does not ask for more."""
    program = """
import time
from rayzero.studies.sandbox_process import end_with
end_with(0)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-P", "-c", program], stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 0


def test_what_a_process_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forking_reader.py").write_text("""
import subprocess, sys
from pathlib import Path
started = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
Path(__file__).with_suffix(".pid").write_text(str(started.pid))
sys.stdout.buffer.write(b"ready\\n")
sys.stdout.buffer.flush()
sys.stdin.buffer.read(1)
""")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("rayzero.studies.sandbox._PROCESS", "forking_reader")
    with Sandbox() as one, pytest.raises(StudyFileError, match="did not survive"):
        one.read_image(film_bytes())
    started = Path("/proc", (tmp_path / "forking_reader.pid").read_text(), "stat")
    deadline = time.monotonic() + 10
    while started.exists() and started.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not started.exists() or started.read_text().split()[2] == "Z"


def test_no_secret_of_the_environment_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for decoders")
    with Sandbox() as one:
        one.read_image(film_bytes())
        (process,) = one.processes()
        with open(f"/proc/{process}/environ") as file:
            assert "not for decoders" not in file.read()


def test_a_process_that_ingests_loads_no_decoder() -> None:
    """Foreign bytes meet decoders in reading processes alone; and a worker starts sooner."""
    code = "import sys, rayzero.studies.ingest; print(*{'pydicom', 'nibabel', 'PIL'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_what_does_not_fit_the_window_takes_the_pipe(sandbox: Sandbox) -> None:
    data = encode(dataset(np.arange(4200 * 4200, dtype=np.uint16).reshape(4200, 4200) % 4096))
    image = sandbox.read_image(data, name="x")
    assert min(len(data), len(image.pixels)) > WINDOW_BYTES
    assert image == read_image(data, name="x")


def test_no_process_can_cut_a_window_short_for_the_other() -> None:
    descriptor, window = create_window()
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        window.close()
        os.close(descriptor)
