"""Which Ray cluster a process belongs to: the one that ``RAY_ADDRESS`` names, else one of its own."""

from __future__ import annotations

import os
import socket
from typing import Any

import ray


def join(*, cpus: int | None = None, **options: Any) -> str:
    """Connect this process to its cluster unless it is connected already; returns the dashboard's address.

    With ``RAY_ADDRESS`` set (Ray sets it for a submitted job; ``auto`` means the head node on this machine) that
    cluster is joined, else a cluster is started here that ends with this process. It is never guessed: Ray's own
    default also follows the note that a head node leaves behind, even when that node is long gone.

    ``cpus`` sizes a cluster that is started here; one that is joined has its own size. ``options`` go to
    ``ray.init``. Raises ConnectionError when the named cluster does not answer, or when the address is a dashboard's.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("http://", "https://")):
        raise ConnectionError(
            f"RAY_ADDRESS={address!r} is the address of a dashboard, which takes jobs: put `ray job submit "
            "--working-dir . --` before this command, or unset RAY_ADDRESS to run on this machine"
        )
    if address == "local":
        options["num_cpus"] = cpus
    _check_reachable(address)
    try:
        context = ray.init(address=address, ignore_reinit_error=True, **options)
    except (ConnectionError, ValueError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at RAY_ADDRESS={address!r}; start it, or unset RAY_ADDRESS to run on this machine"
        ) from error
    return f"http://{context.dashboard_url}"


def _check_reachable(address: str) -> None:
    """Ray itself tries an address that nobody listens at for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster answers at RAY_ADDRESS={address!r} ({error}); start it, or unset RAY_ADDRESS to run on "
            "this machine"
        ) from None
