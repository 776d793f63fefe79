"""The bytes of patients' files that a web process holds at once, whether they were sent or fetched."""

from __future__ import annotations

import threading

from serve.problems import Problem


class Held:
    """At most ``most`` bytes in all leases together. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._lock = threading.Lock()

    def lease(self) -> Lease:
        """The bytes of one request, none at first."""
        return Lease(self)


class Lease:
    """The bytes of one request."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._bytes = 0
        self._over = False

    def take(self, size: int) -> None:
        """Hold ``size`` bytes more. Raises Problem (503) when the process holds all it may, or the request is over."""
        held = self._held
        with held._lock:
            if not self._over:
                self._bytes += size
                held._bytes += size
            if self._over or held._bytes > held._most:
                raise Problem(503, "busy", "The server holds all the bytes it may; try again.", retry_after_s=5)

    def end(self) -> None:
        """Hold none, from now on: who still fetches for the request finds it over."""
        with self._held._lock:
            self._held._bytes -= self._bytes
            self._bytes, self._over = 0, True
