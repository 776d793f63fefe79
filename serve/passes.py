"""A model's one thread: what arrives while it works is taken together as soon as it is free.

Nothing waits for a batch to fill. A question alone starts at once, and under load batches fill by themselves, for
questions gather while those before them are worked on. (``serve.batch`` closes a batch a fixed time after its first
request, also while the pass before it still runs: under load small batches then queue one behind the other.)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True)
class Done(Generic[T]):
    """What the thread made, and when, in nanoseconds since the epoch."""

    value: T
    began: int
    ended: int


@dataclass(frozen=True)
class _Waiting(Generic[Q, A]):
    question: Q
    answer: asyncio.Future[A]


class Passes(Generic[Q, A]):
    """Questions, at most ``most`` at a time, through ``work`` in a thread of its own, or in one that models share.

    ``work`` yields the answers of a batch in its order; each is given out when it is there. An exception that it yields
    is raised to that question alone, one that it raises to all that have no answer yet. To be used from one event loop.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Q]], Iterator[A | Exception]],
        *,
        most: int,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self._work = work
        self._most = most
        # It ends when this is collected, not in a __del__: Serve calls that on a model that makes room, which may be at
        # work.
        self._thread = thread or model_thread()
        self._waiting: deque[_Waiting[Q, A]] = deque()
        self._turns: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """The answer to ``question``, which goes into the next batch."""
        one: _Waiting[Q, A] = _Waiting(question, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        if self._turns is None:
            self._turns = asyncio.create_task(self._take_turns())
        return await one.answer

    async def run(self, work: Callable[[], T]) -> Done[T]:
        """Something else to do in the thread, between two batches."""

        def timed() -> Done[T]:
            began = time.time_ns()
            return Done(work(), began, time.time_ns())

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)

    async def _take_turns(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                taken = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                # Who asked may have gone away.
                batch = [one for one in taken if not one.answer.done()]
                if batch:
                    await loop.run_in_executor(self._thread, self._pass, batch, loop)
        finally:
            self._turns = None

    def _pass(self, batch: Sequence[_Waiting[Q, A]], loop: asyncio.AbstractEventLoop) -> None:
        answered = 0
        try:
            for one, answer in zip(batch, self._work([one.question for one in batch]), strict=True):
                loop.call_soon_threadsafe(_settle, one.answer, answer)
                answered += 1
        except BaseException as error:  # a panic of a tokenizer is no Exception
            for one in batch[answered:]:
                loop.call_soon_threadsafe(_settle, one.answer, error)


def model_thread() -> ThreadPoolExecutor:
    """The one thread in which a process asks its models: torch spreads a pass over the cores, event loops stay free.

    Every thread that computes keeps OpenMP threads of its own. With a second one there are more of them than cores, for
    which OpenMP has them sleep and be woken at every operation: a pass then takes half as long again.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="model")


def apart(work: Callable[[], T]) -> T:
    """What ``work`` gives in a thread that ends with it, and so do the OpenMP threads that it came to need."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _settle(future: asyncio.Future[A], answer: A | BaseException) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
