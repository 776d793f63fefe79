"""Questions that arrive while a model works are taken together; each has its own answer, or its own error.

One alone has all cores, and many share them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import torch

from serve.passes import Lanes, Passes


class Squares:
    """Squares of numbers; each pass waits until it is let go, and negative numbers cannot be done."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def work(self, batch: Sequence[int]) -> Iterator[int | Exception]:
        self.batches.append(list(batch))
        self.started.release()
        assert self.go.acquire(timeout=30)
        for number in batch:
            if number == 0:
                raise ZeroDivisionError("all is lost")
            yield number**2 if number > 0 else ValueError(f"{number} cannot be done")


def _one_lane() -> Lanes:
    return Lanes(1, 3)


@asynccontextmanager
async def _busy(squares: Squares, passes: Passes[int, int]) -> AsyncIterator[asyncio.Task[int]]:
    """While a question of its own is worked on."""
    first = asyncio.create_task(passes.ask(1))
    await asyncio.to_thread(squares.started.acquire)
    yield first


async def _asked(passes: Passes[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(passes.ask(number)) for number in numbers]
    await asyncio.sleep(0)
    return tasks


def test_a_question_alone_starts_at_once_and_those_after_it_fill_batches() -> None:
    async def scenario() -> None:
        squares = Squares()
        passes: Passes[int, int] = Passes(squares.work, _one_lane())
        async with _busy(squares, passes) as first:
            others = await _asked(passes, 2, 3, 4, 5)
        squares.go.release(3)
        assert await asyncio.gather(first, *others) == [1, 4, 9, 16, 25]
        assert squares.batches == [[1], [2, 3, 4], [5]]

    asyncio.run(scenario())


def test_an_error_of_one_question_is_its_own() -> None:
    async def scenario() -> None:
        squares = Squares()
        passes: Passes[int, int] = Passes(squares.work, _one_lane())
        async with _busy(squares, passes) as first:
            good, bad, after = await _asked(passes, 2, -3, 4)
        squares.go.release(2)
        assert [await first, await good, await after] == [1, 4, 16]
        with pytest.raises(ValueError, match="-3 cannot be done"):
            await bad

    asyncio.run(scenario())


def test_a_pass_that_fails_fails_those_without_an_answer_and_the_next_one_runs() -> None:
    async def scenario() -> None:
        squares = Squares()
        passes: Passes[int, int] = Passes(squares.work, _one_lane())
        async with _busy(squares, passes) as first:
            good, bad, lost, after = await _asked(passes, 2, 0, 4, 5)
        squares.go.release(3)
        assert [await first, await good, await after] == [1, 4, 25]
        for one in (bad, lost):
            with pytest.raises(ZeroDivisionError, match="all is lost"):
                await one

    asyncio.run(scenario())


def test_who_went_away_is_not_worked_for() -> None:
    async def scenario() -> None:
        squares = Squares()
        passes: Passes[int, int] = Passes(squares.work, _one_lane())
        async with _busy(squares, passes) as first:
            gone, stays = await _asked(passes, 2, 3)
            gone.cancel()
            await asyncio.sleep(0)
        squares.go.release(2)
        assert [await first, await stays] == [1, 9]
        assert squares.batches == [[1], [3]]

    asyncio.run(scenario())


class Threads:
    """Answers a number with the thread that worked on it and how many cores that had; 0 waits for the gate."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.at_work = 0
        self.most_at_work = 0
        self._lock = threading.Lock()

    def work(self, batch: Sequence[int]) -> Iterator[tuple[str, int] | Exception]:
        with self._lock:
            self.batches.append(list(batch))
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        if 0 in batch:
            assert self.gate.wait(30)
        time.sleep(0.01)
        with self._lock:
            self.at_work -= 1
        for _ in batch:
            yield threading.current_thread().name, torch.get_num_threads()


def test_a_question_alone_has_all_cores_and_many_at_once_one_each() -> None:
    async def scenario() -> None:
        threads = Threads()
        passes: Passes[int, tuple[str, int]] = Passes(threads.work, Lanes(2, 4))
        alone = [await passes.ask(number) for number in (1, 2, 3)]
        assert {cores for _, cores in alone} == {2}
        assert len({name for name, _ in alone}) == 1
        many = await asyncio.gather(*[passes.ask(number) for number in range(10, 22)])
        assert {cores for _, cores in many} == {1}
        assert len({name for name, _ in many}) == 2
        assert threads.most_at_work == 2
        # Together never more than four at work.
        assert max(map(len, threads.batches)) == 2
        assert (await passes.ask(4))[1] == 2

    asyncio.run(scenario())


def test_one_that_comes_while_others_are_at_work_takes_the_free_core_or_waits_for_all() -> None:
    async def scenario() -> None:
        threads = Threads()
        passes: Passes[int, tuple[str, int]] = Passes(threads.work, Lanes(2, 4))
        stuck, beside = (asyncio.create_task(passes.ask(number)) for number in (0, 1))
        assert (await beside)[1] == 1
        assert (await passes.ask(2))[1] == 1
        # Of three cores two are free: one question has neither, two have one each.
        wider: Passes[int, tuple[str, int]] = Passes(threads.work, Lanes(3, 4))
        others = [asyncio.create_task(wider.ask(number)) for number in (0, 3, 4)]
        assert [(await one)[1] for one in others[1:]] == [1, 1]
        waits = asyncio.create_task(wider.ask(5))
        await asyncio.sleep(0.1)
        assert [5] not in threads.batches
        assert {(await one)[1] for one in (waits, asyncio.create_task(wider.ask(6)))} == {1}
        late = asyncio.create_task(wider.ask(7))
        threads.gate.set()
        assert [(await one)[1] for one in (stuck, others[0], late)] == [1, 1, 3]

    asyncio.run(scenario())


def test_without_room_side_by_side_one_pass_has_all_cores() -> None:
    async def scenario() -> None:
        for lanes in (Lanes(2, 4, side_by_side=False), Lanes(8, 4)):
            threads = Threads()
            passes: Passes[int, tuple[str, int]] = Passes(threads.work, lanes)
            many = await asyncio.gather(*[passes.ask(number) for number in range(1, 10)])
            assert len(set(many)) == 1
            assert many[0][1] in (2, 8)
            assert [len(batch) for batch in threads.batches] == [4, 4, 1]

    asyncio.run(scenario())


def test_models_that_share_cores_take_turns() -> None:
    async def scenario() -> None:
        threads, lanes = Threads(), Lanes(1, 2)
        one: Passes[int, tuple[str, int]] = Passes(threads.work, lanes)
        other: Passes[int, tuple[str, int]] = Passes(threads.work, lanes)
        await asyncio.gather(*[passes.ask(number) for number in range(1, 5) for passes in (one, other)])
        assert threads.batches == [[1, 2], [1, 2], [3, 4], [3, 4]]
        assert threads.most_at_work == 1

    asyncio.run(scenario())


def test_other_work_takes_its_turn_in_the_same_thread() -> None:
    async def scenario() -> None:
        squares = Squares()
        passes: Passes[int, int] = Passes(squares.work, _one_lane())
        squares.go.release(1)
        assert await passes.ask(2) == 4
        done = await passes.run(threading.current_thread)
        assert done.value.name.startswith("model")
        assert done.began <= done.ended

    asyncio.run(scenario())
