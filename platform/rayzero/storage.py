"""Folders and object stores, opened by URL with patience for a store that is slow or fails now and then.

Where the store is and who asks comes from the environment variables that all AWS tools read, on every machine of the
cluster: ``AWS_ENDPOINT_URL``, ``AWS_DEFAULT_REGION``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` or a role.
``AWS_MAX_ATTEMPTS`` (default 8) and ``AWS_RETRY_MODE`` (default standard) say how often a failed request is sent
again, with growing pauses.
"""

from __future__ import annotations

import os

from fsspec import AbstractFileSystem
from fsspec.config import conf
from fsspec.core import url_to_fs

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
