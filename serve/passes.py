"""Questions to models, and the cores that answer them: what arrives during a pass is taken together after it.

Nothing waits for a batch to fill. A question alone starts at once, and under load batches fill by themselves, for
questions gather while those before them are worked on. (``serve.batch`` closes a batch a fixed time after its first
request, also while the pass before it still runs: under load small batches then queue one behind the other.)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch

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


class _Line(Protocol):
    """What waits for the cores."""

    def waiting(self) -> int:
        """How many questions."""

    def take(self, count: int) -> Callable[[], None]:
        """The work on the first ``count`` of them, which raises nothing; they wait no longer."""


class Lanes:
    """The cores on which a process asks its models: one pass on all of them, or under load one pass on each.

    torch ends every operation of a pass on several cores with a wait for the slowest, and where a core is shared with
    those who read files and speak HTTP there is always a slow one. Passes of one thread wait for nobody: side by side
    they answer more, and each takes longer. So a question that comes alone has all ``threads``, and as soon as one
    waits for every free core each of these takes a share. All passes at work have ``most`` questions together; where
    that is not one for each thread, and with ``side_by_side`` False (a GPU), one pass at a time has all threads.

    Only the first of the threads here ever has OpenMP threads of its own. With two such there would be more than cores,
    for which OpenMP has them sleep and be woken at every operation: a pass then takes half as long again.

    To be used from one event loop.
    """

    def __init__(self, threads: int, most: int, *, side_by_side: bool = True) -> None:
        self._threads, self._most = threads, most
        self._count = threads if side_by_side and threads <= most else 1
        # They end when this is collected, not in a __del__: Serve calls that on a model that makes room, which may be
        # at work. torch takes its number of threads for a new one as that first asks, which is not to be in a pass.
        self._pools = [
            ThreadPoolExecutor(1, thread_name_prefix=f"model-{lane}", initializer=torch.get_num_threads)
            for lane in range(self._count)
        ]
        self._free = list(range(self._count))
        self._lines: deque[_Line] = deque()
        self._due = False

    def enter(self, line: _Line) -> None:
        """Have ``line`` worked on until nothing of it waits; lines take turns."""
        if line not in self._lines:
            self._lines.append(line)
        if not self._due:
            self._due = True
            # Not before those who ask at the same moment have asked, too.
            asyncio.get_running_loop().call_soon(self._assign)

    def _assign(self) -> None:
        self._due = False
        while self._lines and self._free:
            line = self._lines.popleft()
            waiting, free = line.waiting(), len(self._free)
            if not waiting:
                continue
            if waiting >= free:
                share = min(math.ceil(waiting / free), self._most // self._count)
                self._start(line.take(share), [self._free.pop()])
            elif free == self._count:
                lanes, self._free = self._free, []
                self._start(line.take(min(waiting, self._most)), lanes)
            else:
                # Soon all cores are free, or one waits for each that is.
                self._lines.appendleft(line)
                return
            if line.waiting():
                self._lines.append(line)

    def _start(self, work: Callable[[], None], lanes: list[int]) -> None:
        threads = self._threads if len(lanes) == self._count else 1
        done = asyncio.get_running_loop().run_in_executor(self._pools[lanes[0]], _compute, work, threads)
        done.add_done_callback(partial(self._release, lanes))

    def _release(self, lanes: list[int], _: asyncio.Future[None]) -> None:
        self._free = sorted(self._free + lanes)
        self._assign()


class Passes(Generic[Q, A]):
    """Questions to one model through ``work``, in batches, on the cores that ``lanes`` has for it.

    ``work`` yields the answers of a batch in its order; each is given out when it is there. It is called from several
    threads at once where ``lanes`` has passes side by side. An exception that it yields is raised to that question
    alone, one that it raises to all that have no answer yet. To be used from one event loop.
    """

    def __init__(self, work: Callable[[Sequence[Q]], Iterator[A | Exception]], lanes: Lanes) -> None:
        self._work = work
        self._lanes = lanes
        self._waiting: deque[_Waiting[Q, A]] = deque()

    async def ask(self, question: Q) -> A:
        """The answer to ``question``, which goes into the next batch."""
        one: _Waiting[Q, A] = _Waiting(question, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._lanes.enter(self)
        return await one.answer

    async def run(self, work: Callable[[], T]) -> Done[T]:
        """Something else to do, which takes its turn among the batches."""

        def timed() -> Done[T]:
            began = time.time_ns()
            return Done(work(), began, time.time_ns())

        once = _Once(timed)
        self._lanes.enter(once)
        return await once.answer

    def waiting(self) -> int:
        """Questions that wait, and are still waited for."""
        self._waiting = deque(one for one in self._waiting if not one.answer.done())
        return len(self._waiting)

    def take(self, count: int) -> Callable[[], None]:
        """The pass over the first ``count`` of them."""
        return partial(self._pass, [self._waiting.popleft() for _ in range(count)], asyncio.get_running_loop())

    def _pass(self, batch: Sequence[_Waiting[Q, A]], loop: asyncio.AbstractEventLoop) -> None:
        answered = 0
        try:
            for one, answer in zip(batch, self._work([one.question for one in batch]), strict=True):
                loop.call_soon_threadsafe(_settle, one.answer, answer)
                answered += 1
        except BaseException as error:  # a panic of a tokenizer is no Exception
            for one in batch[answered:]:
                loop.call_soon_threadsafe(_settle, one.answer, error)


class _Once(Generic[T]):
    """Work that waits in a line of its own."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._taken = False
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def waiting(self) -> int:
        return int(not self._taken and not self.answer.done())

    def take(self, count: int) -> Callable[[], None]:
        self._taken = True
        return partial(self._run, asyncio.get_running_loop())

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        found: T | BaseException
        try:
            found = self._work()
        except BaseException as error:  # as in a pass
            found = error
        loop.call_soon_threadsafe(_settle, self.answer, found)


def apart(work: Callable[[], T]) -> T:
    """What ``work`` gives in a thread that ends with it, and so do the OpenMP threads that it came to need."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _compute(work: Callable[[], None], threads: int) -> None:
    # Of the calling thread, though torch does not say so.
    torch.set_num_threads(threads)
    work()


def _settle(future: asyncio.Future[A], answer: A | BaseException) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
