"""A cluster of several machines loses one: training goes on with the workers that are left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from rayzero.config import load_config
from rayzero.storage import open_url
from rayzero.training.manifest import list_stored
from rayzero.training.run import pretrain
from tests.encoders.tiny import tiny_bert
from tests.toys import toy_lake
from tests.training.test_pretrain import await_true, first_step_of, settings

pytestmark = pytest.mark.cluster


def test_a_lost_machine_leaves_a_smaller_run_that_finishes(tmp_path: Path) -> None:
    toy_lake(str(tmp_path / "lake"))
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=True)
    try:
        changes = [f"text.encoder={tiny_bert(tmp_path / 'text')}", "training.cpus_per_worker=1.5", "model.heads=2"]
        changes += ["training.min_workers=1", "training.steps=60", "training.checkpoint_every=5"]
        changes += ["vision.cache_features=false"]  # its actors would hold CPUs for a while
        config = load_config(None, [*settings(tmp_path, "lost"), *changes])
        fs, root = open_url(f"{tmp_path}/lost")
        with ThreadPoolExecutor(1) as driver:
            running = driver.submit(pretrain, config)
            await_true(lambda: running.done() or (Path(root).exists() and len(list_stored(fs, root)) > 0))
            assert not running.done(), "the run ended before a machine could be lost"
            before = list_stored(fs, root)[-1]
            assert len(before.manifests) == 2
            # As a machine that is switched off: its raylet and all workers on it.
            cluster.remove_node(nodes[1], allow_graceful=False)
            result = running.result(timeout=400)
    finally:
        ray.shutdown()
        cluster.shutdown()
    last = list_stored(fs, root)[-1]
    assert (result.metrics["step"], last.step) == (60, 60)
    assert len(last.manifests) == 1
    # It went on from a checkpoint of two workers, none older than the one that was there.
    assert first_step_of(result.run_folder) >= before.step
    assert result.metrics["loss"] < 1.5  # 1.75 at its first step
