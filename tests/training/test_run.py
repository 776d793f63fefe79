"""How a run is put to Ray Train, and what is made of its end."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from rayzero.config import ConfigError, load_config
from rayzero.training import run
from rayzero.training.errors import TrainingError
from rayzero.training.nonfinite import NonFiniteError
from rayzero.training.room import find_room


@pytest.mark.parametrize(
    ("gpus", "environment"),
    [(0, {"env_vars": {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}}), (1, {})],
)
def test_workers_without_a_gpu_see_none(gpus: int, environment: dict[str, Any], tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = load_config(None, [f"training.gpus_per_worker={gpus}", f"storage={tmp_path}"])
    trainer = run._trainer(config, SimpleNamespace(), [])  # type: ignore[arg-type]
    assert trainer.run_config.worker_runtime_env == environment
    assert trainer.backend_config.backend == ("nccl" if gpus else "gloo")


@pytest.mark.parametrize(
    ("have", "changes", "said"),
    [
        ({"CPU": 2}, ["workers=2"], r"2 workers would take all 2 CPU .* which needs 0\.25; lower training.cpus_per_w"),
        # However many of an elastic run's workers find room.
        ({"CPU": 2}, ["workers=4", "min_workers=1", "checkpoint_every=1", "batch_size=4"], "2 workers would take all"),
        ({"CPU": 8, "GPU": 1}, ["workers=1", "cpus_per_worker=8", "gpus_per_worker=1"], "1 workers would take all 8"),
        ({"CPU": 2.25}, ["workers=2"], None),
        ({"CPU": 8, "GPU": 1}, ["workers=2", "min_workers=1", "checkpoint_every=1", "cpus_per_worker=4"], "2 workers"),
        (
            {"CPU": 8, "GPU": 1},
            ["workers=2", "min_workers=1", "checkpoint_every=1", "cpus_per_worker=4", "gpus_per_worker=1"],
            None,
        ),
    ],
)
def test_workers_leave_a_processor_for_reading(
    have: dict[str, float], changes: list[str], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first step would wait for its batch for ever, and say nothing."""
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": have, "Labels": {}}])
    config = load_config(None, [f"training.{change}" for change in changes])
    with pytest.raises(ConfigError, match=said) if said else nullcontext():
        find_room(config)


def ending(outcome: Any) -> Any:
    """A trainer that ends so."""

    def fit() -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return SimpleNamespace(fit=fit)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ray.train.WorkerGroupError("", {0: ValueError("a\nworker broke")}), "failed: worker broke. The same command"),
        (
            ray.train.ControllerError(WorkerGroupStartupTimeoutError(2)),
            r"no room for its 2 workers any more\. .* training\.min_workers lets a run go on",
        ),
        (ray.train.ControllerError(OSError("disk full")), "failed: disk full. The same command continues it"),
        (
            PreemptionError(PreemptionInfo(None, {"node": [1]})),
            r"failed: Training was interrupted by node preemption \(preempted_ranks=\[1\]",
        ),
    ],
)
def test_whatever_ends_a_run_is_one_message(error: Exception, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        run._outcome(load_config(None, ["training.workers=2"]), ending(error))


def test_a_run_whose_loss_is_no_number_has_failed_with_what_it_saved() -> None:
    result = SimpleNamespace(return_value="loss is not a number at step 7", checkpoint=object(), error=None)
    with pytest.raises(NonFiniteError, match="run 'run' stopped: loss is not a number at step 7"):
        run._outcome(load_config(None), ending(result))
