"""The GPU benchmark's recipes run on a CPU at tiny size, through the same model, engine and step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.benchmarks import recipes


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    before = dict(os.environ)
    recipes.alone()
    yield
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_takes_its_steps(name: str, tmp_path: Path) -> None:
    speed, rate = recipes.throughput(name, tmp_path, tiny=True)
    assert speed.ours > 0
    assert rate.ours > 0


def test_a_count_is_of_the_recipe_s_own_parts(tmp_path: Path) -> None:
    trained, frozen, flops = (row.ours for row in recipes.counted("radzero", tmp_path, tiny=True)[:3])
    # The vision encoder is frozen, as published.
    assert trained > 0
    assert frozen > 0
    assert flops > 0
