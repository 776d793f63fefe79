"""Object stores: patience with one that is slow or fails now and then.

Importing this module sets how every ``s3://`` URL is opened in this process. Where the store is and who asks comes
from the environment variables that all AWS tools read, on every machine of the cluster: ``AWS_ENDPOINT_URL``,
``AWS_DEFAULT_REGION``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` or a role. ``AWS_MAX_ATTEMPTS`` (default 8)
and ``AWS_RETRY_MODE`` (default standard) say how often a failed request is sent again, with growing pauses.
"""

from __future__ import annotations

import os

from fsspec.config import conf

_SECONDS_TO_CONNECT = 10
_SECONDS_WITHOUT_A_BYTE = 60


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
