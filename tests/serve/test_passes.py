"""Questions that arrive while a model works are taken together; each has its own answer, or its own error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest

from serve.passes import Passes


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
        passes: Passes[int, int] = Passes(squares.work, most=3)
        async with _busy(squares, passes) as first:
            others = await _asked(passes, 2, 3, 4, 5)
        squares.go.release(3)
        assert await asyncio.gather(first, *others) == [1, 4, 9, 16, 25]
        assert squares.batches == [[1], [2, 3, 4], [5]]

    asyncio.run(scenario())


def test_an_error_of_one_question_is_its_own() -> None:
    async def scenario() -> None:
        squares = Squares()
        passes: Passes[int, int] = Passes(squares.work, most=3)
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
        passes: Passes[int, int] = Passes(squares.work, most=3)
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
        passes: Passes[int, int] = Passes(squares.work, most=3)
        async with _busy(squares, passes) as first:
            gone, stays = await _asked(passes, 2, 3)
            gone.cancel()
            await asyncio.sleep(0)
        squares.go.release(2)
        assert [await first, await stays] == [1, 9]
        assert squares.batches == [[1], [3]]

    asyncio.run(scenario())


def test_other_work_takes_its_turn_in_the_same_thread() -> None:
    async def scenario() -> None:
        squares = Squares()
        passes: Passes[int, int] = Passes(squares.work, most=3)
        squares.go.release(1)
        assert await passes.ask(2) == 4
        done = await passes.run(threading.current_thread)
        assert done.value.name.startswith("model")
        assert done.began <= done.ended

    asyncio.run(scenario())
