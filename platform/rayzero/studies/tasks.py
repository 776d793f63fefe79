"""The data plane's work as Ray tasks, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar, cast

import ray

from rayzero.studies.errors import CorpusError, LakeError

T = TypeVar("T")
R = TypeVar("R")


def mapped(
    function: Callable[[T], R], items: Iterable[T], *, name: str, most: int, ordered: bool = False
) -> Iterator[R]:
    """``function`` of each of ``items`` as Ray tasks called ``name``, no more than ``most`` at once.

    Results come as tasks end, or in the order of ``items`` where ``ordered``. An item is taken when its task starts,
    so the driver holds no more of them than run. A task that fails, or a caller that stops, ends those that still run.
    Raises a task's CorpusError or LakeError as the task raised it.
    """
    task = ray.remote(cast(Any, function)).options(name=name)
    waiting = iter(items)
    running: list[ray.ObjectRef[R]] = [task.remote(item) for item in islice(waiting, most)]
    try:
        while running:
            done = running[0] if ordered else ray.wait(running, num_returns=1)[0][0]
            running.remove(done)
            result = _outcome(done)
            running += [task.remote(item) for item in islice(waiting, 1)]
            yield result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _outcome(task: ray.ObjectRef[R]) -> R:
    try:
        result: R = ray.get(task)
    except (CorpusError, LakeError) as error:
        # Ray hands over a copy that carries the whole trace of the task in its message.
        raise getattr(error, "cause", error) from None
    return result
