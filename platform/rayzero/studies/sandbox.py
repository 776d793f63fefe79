"""Foreign files are read in processes of their own, with a limit on memory, processor time and patience.

A decoder is native code that a crafted or merely damaged file may exhaust, hang or crash. Here that costs one
reading process, and the file is refused with a reason; the caller goes on. A reading process serves many files, so
the price for a file is two copies through shared memory, or through a pipe for a large one. It can open no file and no
connection, and answers with plain JSON and pixels, never with objects.

    from rayzero.studies.sandbox import Sandbox
    with Sandbox(workers=2) as sandbox:
        image = sandbox.read_image(data, name="chest.dcm")
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from types import TracebackType
from typing import Any

from rayzero.studies.errors import StudyFileError
from rayzero.studies.sandbox_window import WINDOW_BYTES, create_window
from rayzero.studies.study import Image, image_from_row
from rayzero.studies.voxels import MAX_VOXELS, VolumeHeader

LENGTHS = struct.Struct("<QQ")
"""Bytes of the header of a request or an answer, and of what follows it."""

READY = b"ready\n"
"""What the process says when it has confined itself."""

_PROCESS = "rayzero.studies.sandbox_process"
# All the environment that it gets: no credentials, and no threads of a numerical library, which would reserve memory.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
# A volume is many megabytes: with the 64 KiB of a new pipe the two processes would wake each other up for each.
_PIPE_BYTES = 2**20
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_MEMORY = {
    # glibc otherwise gives the memory of each film back, to get it again for the next one page by page.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
    # Of a damaged file some decoders fill a part of the picture alone. What is allocated is zeros (255 ^ 0xff), so that
    # the rest never shows the film before, another patient's.
    "MALLOC_PERTURB_": "255",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What reading one file may take.

    ``memory_bytes`` is address space beyond that of the idle process; ``cpu_seconds`` is processor time and
    ``wall_seconds`` the time until the caller gives up.
    """

    file_bytes: int = 512 * 2**20
    memory_bytes: int = 2 * 2**30
    cpu_seconds: int = 60
    wall_seconds: float = 180.0


FILM_LIMITS = Limits()
"""For the radiographs of a corpus."""

VOLUME_LIMITS = Limits(file_bytes=4 * MAX_VOXELS, memory_bytes=12 * 2**30, cpu_seconds=600, wall_seconds=1800.0)
"""For the volumes of a corpus.

A file of the largest volume, as 32-bit numbers, is read: in memory lie its bytes and the same expanded (4 GiB each),
then its Hounsfield units as an array and as bytes (2 GiB each). Its slices as JPEG 2000 take some minutes of processor
time on an old machine.
"""


class Sandbox:
    """Up to ``workers`` reading processes, started when first needed. Its methods may be called from any thread."""

    def __init__(self, *, workers: int = 1, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        # None stands for a process that is still to be started.
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._workers = workers

    def read_image(self, data: bytes, *, name: str = "", attributes: str = "") -> Image:
        """As ``rayzero.studies.files.read_image``; a file that breaks a limit is refused too.

        Waits while all processes are busy. Raises StudyFileError.
        """
        return self._read(data, {"name": name, "kind": "image", "attributes": attributes})

    def read_volume(self, data: bytes, *, name: str = "", header: VolumeHeader | None = None) -> Image:
        """As ``rayzero.studies.volumes.read_volume``, with the names of an archive's files kept out of messages.

        For the rest as ``read_image``.
        """
        return self._read(data, {"name": name, "kind": "volume", "header": asdict(header) if header else None})

    def read_series(self, files: Iterable[bytes], *, name: str = "") -> Image:
        """The volume that the DICOM ``files`` of one series make up; messages count them from 1.

        Together they are held to the limit of one file, and no further one is asked for beyond it. For the rest as
        ``read_image``.
        """
        return self.read_volume(_packed(files, self._limits.file_bytes), name=name)

    def read_headers(self, data: bytes) -> list[dict[str, Any]]:
        """As ``rayzero.studies.headers.read_headers``; for the rest as ``read_image``."""
        header, _ = self._ask(data, {"name": "", "kind": "headers"})
        headers: list[dict[str, Any]] = header["headers"]
        return headers

    def _read(self, data: bytes, request: dict[str, Any]) -> Image:
        header, payload = self._ask(data, request)
        return image_from_row({**header, "pixels": payload})

    def _ask(self, data: bytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if len(data) > self._limits.file_bytes:
            raise StudyFileError("open", f"a file of {len(data):,} bytes is beyond {self._limits.file_bytes:,}")
        process = self._idle.get()
        intact = False
        try:
            if process is not None and not process.alive():
                process.stop()
                process = None
            if process is None:
                process = _Process(self._limits)
            header, payload = process.ask(request, data)
            intact = True
        except _Stopped as error:
            raise StudyFileError("decode", str(error)) from None
        finally:
            if process is not None and not intact:
                process.stop()
                process = None
            self._idle.put(process)
        if "reason" in header:
            raise StudyFileError(header["stage"], header["reason"])
        return header, payload

    def processes(self) -> list[int]:
        """The ids of the reading processes that wait for a file."""
        return [process.id for process in list(self._idle.queue) if process is not None]

    def close(self) -> None:
        """End the processes, after those that are reading have finished."""
        for process in [self._idle.get() for _ in range(self._workers)]:
            if process is not None:
                process.stop()
            self._idle.put(None)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@cache
def shared_sandbox(limits: Limits = FILM_LIMITS) -> Sandbox:
    """One reading process of such ``limits`` for this process, which ends with it."""
    return Sandbox(workers=1, limits=limits)


def _packed(files: Iterable[bytes], most: int) -> bytes:
    """A zip archive of ``files``, not compressed, in their order and under no names. Raises StudyFileError."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for place, data in enumerate(files, 1):
            if packed.tell() + len(data) > most:
                raise StudyFileError("open", f"the first {place} files of the series are beyond {most:,} bytes")
            archive.writestr(f"{place}.dcm", data)
    return packed.getvalue()


class _Stopped(Exception):
    """The reading process is gone, and why."""


class _Process:
    """One reading process and the two pipes to it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        window, self._window = create_window()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _PROCESS, str(limits.memory_bytes), str(limits.cpu_seconds), str(window)],
                pass_fds=(window,),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment | _ONE_THREAD | _MEMORY,
                bufsize=0,
                start_new_session=True,  # a process group of its own, which stop() ends with all that it started
            )
        finally:
            os.close(window)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):  # a user's pipes together are bounded
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._deadline = time.monotonic() + limits.wall_seconds
        try:
            ready = self._receive(len(READY)) == READY
        except _Stopped:
            ready = False
        if not ready:
            self.stop()
            raise RuntimeError(f"the reading process does not start: run {sys.executable} -m {_PROCESS} to see why")

    @property
    def id(self) -> int:
        """The id of the process."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def ask(self, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Send a file and wait for its image, or its refusal. Raises _Stopped when the process did not survive it."""
        text = json.dumps(header).encode()
        self._deadline = time.monotonic() + self._limits.wall_seconds
        small = len(data) <= WINDOW_BYTES
        if small:
            self._window[: len(data)] = data
        self._send(LENGTHS.pack(len(text), len(data)) + text)
        if not small:
            self._send(data)
        header_bytes, payload_bytes = LENGTHS.unpack(self._receive(LENGTHS.size))
        if max(header_bytes, payload_bytes) > self._limits.memory_bytes:
            raise _Stopped("the decoder did not survive the file (it answers nonsense)")
        answer: dict[str, Any] = json.loads(self._receive(header_bytes))
        if payload_bytes <= WINDOW_BYTES:
            return answer, self._window[:payload_bytes]
        return answer, self._receive(payload_bytes)

    def stop(self) -> None:
        """End the process and any that it started, whatever they are doing."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._window.close()

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(write=True)
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise _Stopped(self._verdict()) from None

    def _receive(self, size: int) -> bytes:
        buffer = bytearray(size)
        view = memoryview(buffer)
        while view:
            self._wait(write=False)
            read = os.readv(self._stdout, [view])
            if not read:
                raise _Stopped(self._verdict())
            view = view[read:]
        return bytes(buffer)

    def _wait(self, *, write: bool) -> None:
        left = self._deadline - time.monotonic()
        poll = select.poll()  # select.select fails on descriptors above 1,023, which a busy server has
        poll.register(self._stdin if write else self._stdout, select.POLLOUT if write else select.POLLIN)
        if left <= 0 or not poll.poll(left * 1000):
            raise _Stopped(f"reading takes longer than {self._limits.wall_seconds:g} s")

    def _verdict(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return f"reading takes more than {self._limits.cpu_seconds} s of processor time"
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the decoder did not survive the file ({cause})"
