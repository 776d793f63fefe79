"""Room for a run's workers: refused where it cannot come, asked and waited for where it can."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rayzero.config import Config, ConfigError, load_config
from rayzero.training import room
from rayzero.training.errors import TrainingError


def a_node(cpus: float, gpus: float = 0.0, *, group: str = "", alive: bool = True) -> dict[str, Any]:
    labels = {"ray.io/node-group": group} if group else {}
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}, "Labels": labels}


def a_run(*settings: str) -> Config:
    return load_config(None, [f"training.{one}" for one in ("workers=2", "cpus_per_worker=2", *settings)])


class Cluster:
    """What Ray says of a cluster, which grows by a step each time that one waits; and what it was asked for."""

    def __init__(self, *steps: list[dict[str, Any]]) -> None:
        self.steps = [*steps]
        self.asked: list[list[dict[str, float]]] = []
        self.withdrawn, self.now = 0, 0.0

    def nodes(self) -> list[dict[str, Any]]:
        return self.steps[0]

    def ask(self, bundles: list[dict[str, float]]) -> None:
        self.asked.append(bundles)

    def withdraw(self, group: None) -> None:
        self.withdrawn += 1

    def sleep(self, seconds: float) -> None:
        self.now += 10 * seconds
        if len(self.steps) > 1:
            self.steps.pop(0)


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*steps: list[dict[str, Any]]) -> Cluster:
        cluster = Cluster(*steps)
        monkeypatch.setattr(room, "ray", SimpleNamespace(nodes=cluster.nodes))
        monkeypatch.setattr(room, "placement_group", cluster.ask)
        monkeypatch.setattr(room, "remove_placement_group", cluster.withdraw)
        monkeypatch.setattr(room, "time", SimpleNamespace(sleep=cluster.sleep, monotonic=lambda: cluster.now))
        return cluster

    return install


def test_a_cluster_of_fixed_size_refuses_at_once(clusters: Any) -> None:
    cluster = clusters([a_node(2.5), a_node(8, alive=False)])
    with pytest.raises(ConfigError, match=r"2 workers need 4 CPU, the cluster has 2.5; lower training.workers"):
        room.find_room(a_run())
    with pytest.raises(ConfigError, match=r"2 workers need 2 GPU, the cluster has 0"):
        room.find_room(a_run("cpus_per_worker=1", "gpus_per_worker=1"))
    room.find_room(a_run("cpus_per_worker=1"))
    room.find_room(a_run("min_workers=1", "checkpoint_every=10"))
    assert cluster.asked == []


def test_a_worker_needs_one_node_and_a_driver_its_share(clusters: Any) -> None:
    clusters([a_node(3), a_node(1)])
    with pytest.raises(ConfigError, match="do not fit, with 2 CPU for each worker on one of the cluster's 2 nodes"):
        room.find_room(a_run())
    clusters([a_node(2), a_node(2), a_node(0.5)])
    room.find_room(a_run(), driver_cpus=0.1)
    clusters([a_node(2), a_node(2)])
    with pytest.raises(ConfigError, match=r"2 workers and a driver \(0.1 CPU\) need 4.1 CPU, the cluster has 4"):
        room.find_room(a_run(), driver_cpus=0.1)


def test_reading_needs_a_share_beside_workers_and_driver(clusters: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clusters([a_node(4.25)])
    room.find_room(a_run())
    with pytest.raises(ConfigError, match=r"2 workers and a driver \(0.1 CPU\) would take all 4.25 CPU .* needs 0.25"):
        room.find_room(a_run(), driver_cpus=0.1)
    clusters([a_node(4.35)])
    room.find_room(a_run(), driver_cpus=0.1)
    assert capsys.readouterr().out == ""
    clusters([a_node(4, group="workers")])
    room.find_room(a_run())
    assert "leave none to read studies for them" in capsys.readouterr().out


def test_a_cluster_scaled_to_zero_is_asked_and_waited_for(clusters: Any, capsys: pytest.CaptureFixture[str]) -> None:
    head, worker = a_node(0, group="headgroup"), a_node(4, 1, group="workers")
    cluster = clusters([head], [head], [head, worker], [head, worker, worker])
    room.find_room(a_run("gpus_per_worker=1"))
    assert cluster.asked == [[{"CPU": 2.0, "GPU": 1.0}] * 2]
    assert cluster.withdrawn == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "waiting for the cluster to grow: 2 workers need 4 CPU, the cluster has 0 (0 s)"
    assert 1 < len(lines) < 4


def test_nodes_that_never_come_end_the_wait(clusters: Any) -> None:
    cluster = clusters([a_node(0, group="headgroup")])
    with pytest.raises(TrainingError, match=r"2 workers need 4 CPU, the cluster has 0, and none came in 60 minutes"):
        room.find_room(a_run())
    assert cluster.withdrawn == 1
