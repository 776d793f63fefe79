"""Batches made ahead: their order, how far, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from rayzero.config import DataConfig
from rayzero.training.ahead import ahead
from rayzero.training.batches import collate
from tests.encoders.tiny import tiny_bert, tiny_text
from tests.training.test_batches import table_of

CPU = torch.device("cpu")
LONG = 60.0


def test_items_come_in_order_from_another_thread_which_ends() -> None:
    threads: set[threading.Thread] = set()

    def items() -> Generator[int]:
        for index in range(5):
            threads.add(threading.current_thread())
            yield index

    assert list(ahead(items(), CPU)) == list(range(5))
    (thread,) = threads
    assert thread is not threading.current_thread()
    thread.join(LONG)
    assert not thread.is_alive()


def test_one_item_is_made_while_another_is_used_and_no_more() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Generator[int]:
        for index, one in enumerate(made):
            one.set()
            yield index

    given = ahead(items(), CPU)
    assert next(given) == 0
    assert made[1].wait(LONG)
    # Nothing asks for it: the thread has no more to do.
    assert not made[2].is_set()
    assert next(given) == 1
    assert made[2].wait(LONG)
    assert not made[3].is_set()
    given.close()


def test_an_error_comes_at_its_turn_as_it_was_raised() -> None:
    error = ValueError("no study of this batch has a sentence")

    def items() -> Generator[int]:
        yield 0
        yield 1
        raise error

    given = ahead(items(), CPU)
    assert [next(given), next(given)] == [0, 1]
    with pytest.raises(ValueError, match="no study") as raised:
        next(given)
    assert raised.value is error
    with pytest.raises(StopIteration):
        next(given)


def test_closing_waits_for_no_item_and_closes_what_makes_them() -> None:
    begun, goes_on, closed = threading.Event(), threading.Event(), threading.Event()

    def items() -> Generator[int]:
        try:
            yield 0
            begun.set()
            assert goes_on.wait(LONG)
            yield 1
        finally:
            closed.set()

    given = ahead(items(), CPU)
    assert next(given) == 0
    assert begun.wait(LONG)
    given.close()
    assert not closed.is_set()
    goes_on.set()
    assert closed.wait(LONG)


def test_batches_made_ahead_are_those_made_in_turn(tmp_path: Path) -> None:
    """Whatever the step that runs meanwhile draws, and while another thread tokenises as validation does."""
    tiny_bert(tmp_path)
    text = tiny_text(tmp_path)
    table = table_of([["There is a nodule", "There is edema"], ["There is no effusion", "There is a fracture"]])

    def batches() -> Generator[tuple[torch.Tensor, ...]]:
        for step in range(20):
            batch = collate(table, text, DataConfig(texts="sentence"), cached=False, seed=3, step=step)
            yield batch.texts.ids, batch.text_ids, batch.positives, batch.pixels

    expected = list(batches())
    torch.manual_seed(0)
    drawn, given = [], []
    with ThreadPoolExecutor(1) as other:
        validation = other.submit(lambda: [text.tokenize(["There is edema"] * 8).ids for _ in range(50)])
        for batch in ahead(batches(), CPU):
            drawn.append(float(torch.rand(())))
            given.append(batch)
        assert len({tuple(ids.flatten().tolist()) for ids in validation.result()}) == 1
    assert all(
        torch.equal(one, two) for a, b in zip(given, expected, strict=True) for one, two in zip(a, b, strict=True)
    )
    torch.manual_seed(0)
    assert drawn == [float(torch.rand(())) for _ in range(20)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_a_pinned_batch_reaches_the_gpu_whole(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    text = tiny_text(tmp_path)
    batch = collate(table_of([["There is a nodule"], ["There is edema"]]), text, DataConfig(), cached=False)
    moved = batch.pin_memory().to("cuda", non_blocking=True).to("cpu")
    assert torch.equal(moved.pixels, batch.pixels)
    assert torch.equal(moved.texts.ids, batch.texts.ids)
