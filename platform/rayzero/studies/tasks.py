"""What a Ray task of the data plane gives back, or raises."""

from __future__ import annotations

from typing import TypeVar

import ray

from rayzero.studies.errors import CorpusError, LakeError

T = TypeVar("T")


def outcome(task: ray.ObjectRef[T]) -> T:
    """The result of ``task``. Raises its CorpusError or LakeError as the task raised it."""
    try:
        result: T = ray.get(task)
    except (CorpusError, LakeError) as error:
        # Ray hands over a copy that carries the whole trace of the task in its message.
        raise getattr(error, "cause", error) from None
    return result
