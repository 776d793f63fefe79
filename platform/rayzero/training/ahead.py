"""The next batch is made on the host while the step before it runs on the accelerator."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")


def ahead(items: Generator[T], device: torch.device) -> Generator[T]:
    """``items`` (never None) in their order, each made in a thread from when the one before it was handed out.

    So one item is made ahead, and no more. What making one raises is raised at its turn, after the items before it.
    Closing this closes ``items`` when the one under way is made, and does not wait for it: the reading behind it may
    be what has failed. ``device`` is the current one of the thread, where it is a GPU.
    """
    # A thread begins on GPU 0, where pinning memory would leave a context of every worker.
    begin = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    thread = ThreadPoolExecutor(1, "batches", initializer=begin)
    try:
        following: Future[T | None] = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item
    finally:
        thread.submit(items.close)
        thread.shutdown(wait=False)
