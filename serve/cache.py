"""A cache that forgets what was used longest ago once its contents weigh too much."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class LruCache(Generic[V]):
    """Values by key, at most ``capacity`` in total ``weight`` (a count unless ``weigh`` is given). Thread-safe."""

    def __init__(self, capacity: int, weigh: Callable[[V], int] = lambda _: 1) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._values: OrderedDict[str, V] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> V | None:
        """The value of ``key``, now the most recently used, or None."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: str, value: V) -> None:
        """Keep ``value`` and drop the least recently used ones that no longer fit; one that never fits is not kept."""
        weight = self._weigh(value)
        with self._lock:
            previous = self._values.pop(key, None)
            if previous is not None:
                self._weight -= self._weigh(previous)
            if weight > self._capacity:
                return
            self._values[key] = value
            self._weight += weight
            while self._weight > self._capacity and self._values:
                _, dropped = self._values.popitem(last=False)
                self._weight -= self._weigh(dropped)

    def __len__(self) -> int:
        return len(self._values)
