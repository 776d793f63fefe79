"""Folders and object stores, opened by URL with patience for a store that is slow or fails now and then.

What is written through ``whole_file`` and ``write_whole`` is there as a whole or not at all.

Where the store is and who asks comes from the environment variables that all AWS tools read, on every machine of the
cluster: ``AWS_ENDPOINT_URL``, ``AWS_DEFAULT_REGION``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` or a role.
``AWS_MAX_ATTEMPTS`` (default 8) and ``AWS_RETRY_MODE`` (default standard) say how often a failed request is sent
again, with growing pauses.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fsspec import AbstractFileSystem
from fsspec.config import conf
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from rayzero.config import ConfigError

_SECONDS_TO_CONNECT = 10
_SECONDS_WITHOUT_A_BYTE = 60


def open_url(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system that ``url`` (a folder or a URL) names, and the path within it.

    Raises ConfigError for an empty address, a scheme that nothing here speaks, or one whose package is absent.
    """
    if not url:
        raise ConfigError("an address of a folder or an object store is empty")
    try:
        fs, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{url}: cannot be opened ({error}); give a folder, or a URL such as s3://bucket/folder"
        ) from None
    return fs, path


def is_url(address: str) -> bool:
    """Whether ``address`` says itself where it is (s3://bucket/folder), and is no path to complete or to lock."""
    return "://" in address


def make_parent(fs: AbstractFileSystem, path: str) -> None:
    """Make the folder of the file ``path``, where there are folders: object stores have none."""
    if isinstance(fs, LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def whole_file(fs: AbstractFileSystem, path: str) -> Iterator[IO[bytes]]:
    """A file that appears at ``path`` when it is complete: by a rename on a disk, by nature on an object store.

    Its folder must be there. Several processes may write the same file at once. An error midway may leave a shorter
    object in a store: write what names the file after it.
    """
    if not isinstance(fs, LocalFileSystem):
        with fs.open(path, "wb") as file:
            yield file
        return
    unfinished = f"{path}.{secrets.token_hex(4)}.unfinished"
    try:
        with open(unfinished, "wb") as file:
            yield file
            # Else a power cut may leave the name and not the content.
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def write_whole(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file so that a reader, and a crash, see the old content or the new. Its folder must be there."""
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, data)
        return
    with whole_file(fs, path) as file:
        file.write(data)


@contextmanager
def local_copy(fs: AbstractFileSystem, root: str) -> Iterator[Path]:
    """The folder ``root`` on this machine's disk: itself, or a copy that is removed at the end."""
    if isinstance(fs, LocalFileSystem):
        yield Path(root)
        return
    with tempfile.TemporaryDirectory() as folder:
        fs.get(f"{root}/", f"{folder}/", recursive=True)
        yield Path(folder)


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _configure() -> None:
    settings = conf.setdefault("s3", {}).setdefault("config_kwargs", {})
    settings.setdefault("connect_timeout", _SECONDS_TO_CONNECT)
    settings.setdefault("read_timeout", _SECONDS_WITHOUT_A_BYTE)
    settings.setdefault(
        "retries",
        {
            "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", "8")),
            "mode": os.environ.get("AWS_RETRY_MODE", "standard"),
        },
    )


_configure()
