"""The storage of a run, local or remote, with patience: a store that is away for some minutes ends no training.

Ray Train writes its own record of the run (which checkpoints there are) through ``train_storage``; checkpoints go
through ``patiently``. What is written is there as a whole or not at all, so that a kill leaves nothing half-read.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow.fs
from botocore.exceptions import BotoCoreError
from fsspec import AbstractFileSystem

from rayzero.storage import open_url, write_whole

PATIENCE_SECONDS = 900.0
"""For how long a store may be away before the run gives up (until the next retry of its workers)."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0

T = TypeVar("T")


def patiently(action: Callable[[], T], what: str, *, seconds: float = PATIENCE_SECONDS) -> T:
    """The result of ``action``, tried again with growing pauses while the storage fails, for ``seconds``.

    What is absent or forbidden stays so: FileNotFoundError and PermissionError are raised at once, any other OSError
    when time is up.
    """
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        try:
            return action()
        except (FileNotFoundError, PermissionError):
            raise
        except (OSError, BotoCoreError) as error:
            if time.monotonic() + pause > deadline:
                raise
            print(f"{what}: {error or type(error).__name__}; trying again in {pause:.1f} s", flush=True)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def train_storage(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The folder or URL as Ray Train wants it: a file system and a path within it."""
    fs, path = open_url(url)
    return pyarrow.fs.PyFileSystem(_PatientHandler(fs)), path


class _PatientHandler(pyarrow.fs.FSSpecHandler):
    """Ray Train's operations, repeated while the store is away; its small state files are replaced as a whole."""

    def get_file_info(self, paths: list[str]) -> list[pyarrow.fs.FileInfo]:
        # Listings are cached per process, and another process may have written.
        self.fs.invalidate_cache()
        return patiently(lambda: super(_PatientHandler, self).get_file_info(paths), "looking at the run's storage")

    def create_dir(self, path: str, recursive: bool) -> None:
        patiently(lambda: super(_PatientHandler, self).create_dir(path, recursive), f"making {path}")

    def delete_dir(self, path: str) -> None:
        patiently(lambda: super(_PatientHandler, self).delete_dir(path), f"deleting {path}")

    def open_output_stream(self, path: str, metadata: Any) -> pyarrow.PythonFile:
        return pyarrow.PythonFile(_WholeFile(self.fs, path), mode="w")

    def open_input_stream(self, path: str) -> pyarrow.PythonFile:
        data = patiently(lambda: self.fs.cat_file(path), f"reading {path}")
        return pyarrow.PythonFile(io.BytesIO(data), mode="r")


class _WholeFile(io.BytesIO):
    """Collects what is written and stores it when closed."""

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        super().__init__()
        self._fs, self._path = fs, path

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            patiently(lambda: write_whole(self._fs, self._path, data), f"writing {self._path}")
