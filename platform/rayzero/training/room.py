"""Room on the cluster for a run's workers: waited for where nodes can still come, refused where none can."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group

from rayzero.config import Config, ConfigError
from rayzero.studies.loading import READER_CPUS
from rayzero.training.errors import TrainingError

Bundle = dict[str, float]

# Ray's label of a node that was started as one of a cluster's node types, by KubeRay or `ray up`: its autoscaler adds
# nodes. How many it may add, Ray tells nobody.
_NODE_GROUP = "ray.io/node-group"
_LOOK_SECONDS = 2.0
_LINE_SECONDS = 30.0
# A cloud without capacity, or a run that no node type has room for.
_PATIENCE_SECONDS = 3600.0
# Tenths do not add up.
_EPSILON = 1e-6


def find_room(config: Config, *, driver_cpus: float = 0.0) -> None:
    """Return when the cluster has the nodes that the workers of ``config`` take, in use or not.

    On a cluster that grows this asks for them, waits, and says so. ``driver_cpus`` is what the run's own driver takes
    beside them. Raises ConfigError when the nodes are too few or too small and none can come, TrainingError when none
    has come in an hour.
    """
    training = config.training
    workers = training.min_workers or training.workers
    each = {"CPU": training.cpus_per_worker, "GPU": training.gpus_per_worker}
    bundles = [{name: amount for name, amount in each.items() if amount}] * workers
    who = f"{workers} workers"
    if driver_cpus:
        bundles.append({"CPU": driver_cpus})
        who += f" and a driver ({driver_cpus:g} CPU)"
    problem = _problem(who, bundles)
    if problem and not grows():
        raise ConfigError(
            f"{problem}; lower training.{'min_' * bool(training.min_workers)}workers, training.cpus_per_worker or "
            "training.gpus_per_worker"
        )
    if problem:
        _wait(who, bundles)
    problem = _without_readers(config, driver_cpus)
    if problem and not grows():
        raise ConfigError(problem)
    if problem:
        # It adds a node for them, unless it is as large as it may be: that it tells nobody.
        print(f"{problem}; reading waits until the cluster grows", flush=True)


def grows() -> bool:
    """Whether the cluster has an autoscaler that may add nodes."""
    return any(node["Labels"].get(_NODE_GROUP) for node in _alive())


def _without_readers(config: Config, driver_cpus: float) -> str:
    """Why the workers, however many of an elastic run's find room, leave nothing to read with; empty where they do."""
    training = config.training
    cpus, gpus = (sum(node["Resources"].get(name, 0.0) for node in _alive()) for name in ("CPU", "GPU"))
    left = cpus - driver_cpus
    fitting = min(training.workers, int((left + _EPSILON) / training.cpus_per_worker))
    if training.gpus_per_worker:
        fitting = min(fitting, int(gpus / training.gpus_per_worker))
    if left - fitting * training.cpus_per_worker >= READER_CPUS - _EPSILON:
        return ""
    who = f"{fitting} workers" + (f" and a driver ({driver_cpus:g} CPU)" if driver_cpus else "")
    return (
        f"{who} would take all {cpus:g} CPU of the cluster and leave none to read studies for them, "
        f"which needs {READER_CPUS:g}; lower training.cpus_per_worker or training.workers"
    )


def _wait(who: str, bundles: Sequence[Bundle]) -> None:
    """Ask the autoscaler for ``bundles`` until their nodes are there; what is asked for ends with this process."""
    start = line = time.monotonic()
    group = placement_group([dict(bundle) for bundle in bundles])
    try:
        while problem := _problem(who, bundles):
            now = time.monotonic()
            if now - start > _PATIENCE_SECONDS:
                raise TrainingError(
                    f"{problem}, and none came in {(now - start) / 60:.0f} minutes: `ray status` says what became of "
                    "them; start again when they can come, or lower what a worker takes"
                )
            if now >= line:
                print(f"waiting for the cluster to grow: {problem} ({now - start:.0f} s)", flush=True)
                line = now + _LINE_SECONDS
            time.sleep(_LOOK_SECONDS)
    finally:
        remove_placement_group(group)


def _problem(who: str, bundles: Sequence[Bundle]) -> str:
    """Why the nodes that are there cannot hold ``bundles``; empty when they can."""
    nodes = [node["Resources"] for node in _alive()]
    for name in ("CPU", "GPU"):
        need = sum(bundle.get(name, 0.0) for bundle in bundles)
        have = sum(node.get(name, 0.0) for node in nodes)
        if need > have + _EPSILON:
            return f"{who} need {need:g} {name}, the cluster has {have:g}"
    if _fits(bundles, nodes):
        return ""
    each = " and ".join(f"{amount:g} {name}" for name, amount in bundles[0].items())
    return f"{who} do not fit, with {each} for each worker on one of the cluster's {len(nodes)} nodes"


def _fits(bundles: Sequence[Bundle], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether each bundle finds a node, the largest first."""
    left = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda one: (one.get("GPU", 0.0), one.get("CPU", 0.0)), reverse=True):
        for node in left:
            if all(amount <= node.get(name, 0.0) + _EPSILON for name, amount in bundle.items()):
                for name, amount in bundle.items():
                    node[name] -= amount
                break
        else:
            return False
    return True


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
