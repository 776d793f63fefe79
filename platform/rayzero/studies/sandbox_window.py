"""Memory that a reading process shares with the one that asks it: a film passes through it with two plain copies.

Through a pipe it would be taken apart into pages, each allocated, copied and freed on its way.
"""

from __future__ import annotations

import fcntl
import mmap
import os

WINDOW_BYTES = 32 * 2**20
"""What is larger goes through the pipe. Nearly every film is smaller, and its pages stay with the two processes."""


def create_window() -> tuple[int, mmap.mmap]:
    """A new window, and the descriptor by which a child process opens the same one. The caller closes both."""
    descriptor = os.memfd_create("rayzero-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, WINDOW_BYTES)
    # A process that cut it short would end the other one, when that next looks into it.
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor, open_window(descriptor)


def open_window(descriptor: int) -> mmap.mmap:
    """The window behind a ``descriptor``."""
    return mmap.mmap(descriptor, WINDOW_BYTES)
