"""One real Ray cluster for all tests that need one, sized as a laptop: two CPUs, dashboard on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Triton reads this when it is first imported, which other imports may do: without a GPU its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

import hypothesis
import pytest
import ray
from xdist.scheduler import LoadFileScheduling

from jobs.command import connect

# How long an example takes says how busy the machine is, and no test is about that.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


class _ClustersInTurn(LoadFileScheduling):  # type: ignore[misc]
    """Of several test processes, one has all files that start Ray clusters; the other files are shared out whole.

    Clusters wait more than they compute, but two at once are too much for two cores. Markers (``xdist_group``) would
    say it better; pytest 9 keeps node ids where pytest-xdist 3.8 does not find them.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "clusters" if _starts_clusters(file) else file


@cache
def _starts_clusters(file: str) -> bool:
    return "mark.cluster" in Path(__file__).parents[1].joinpath(file).read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _ClustersInTurn:
    return _ClustersInTurn(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with clusters begin: they take longest."""
    items.sort(key=lambda item: not _starts_clusters(item.nodeid.split("::")[0]))


@pytest.fixture(scope="module", autouse=True)
def _no_cluster_is_left_behind() -> Iterator[None]:
    yield
    if ray.is_initialized():
        ray.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local cluster of two CPUs. Sweeps need its dashboard: Ray Train's cleaner asks it."""
    ray.shutdown()
    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=True)
    connect()
    yield
    ray.shutdown()
