"""One real Ray cluster for all tests that need one, sized as a laptop: two CPUs, dashboard on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Triton reads this when it is first imported, which other imports may do: without a GPU its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

import hypothesis
import pytest
import ray

from jobs.command import connect

# How long an example takes says how busy the machine is, and no test is about that.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


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
