"""Processes of this machine joined by gloo, as a training run's workers on CPUs are."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from unittest.mock import patch

import torch.distributed as dist
import torch.multiprocessing as mp

# What processes of these tests import, once for all of them.
multiprocessing.set_forkserver_preload(["rayzero.training.engine", "deepspeed", "transformers"])


def in_processes(world: int, work: Callable[..., None], *args: object) -> None:
    """Call ``work(rank, *args)`` in ``world`` new processes, which form a process group and see no GPU.

    They are forked from one that starts with the first of them and keeps its environment. Such processes end without
    taking Python down: DeepSpeed keeps its groups, and a thread of gloo that lets go of a tensor while Python ends
    aborts the process.

    Raises:
        torch.multiprocessing.ProcessException: One of them failed; the others are ended.
    """
    with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        multiprocessing.forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_joined, (world, f"{folder}/store", work, args), world, start_method="forkserver")


def _joined(rank: int, world: int, store: str, work: Callable[..., None], args: tuple[object, ...]) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=5),  # nobody ends them when the tests' own process is killed
    )
    work(rank, *args)
    dist.barrier()
