"""The guard against losses and gradients that are no numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray.train

from rayzero.config import load_config
from rayzero.ops.contrastive import NonFiniteLogitsError
from rayzero.training import loop
from rayzero.training.errors import TrainingError
from rayzero.training.nonfinite import NonFiniteError, examined, guard
from rayzero.training.run_storage import train_storage


@pytest.fixture
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose run folder is ``tmp_path``."""
    filesystem, root = train_storage(str(tmp_path))
    storage = SimpleNamespace(experiment_fs_path=root, storage_filesystem=filesystem)
    context = SimpleNamespace(get_world_rank=lambda: 3, get_storage=lambda: storage)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)


@pytest.mark.usefixtures("_alone")
def test_a_loss_that_is_no_number_names_the_studies(tmp_path: Path) -> None:
    examples = pa.table({"study_id": ["a", "b"]})
    guard({"loss": 1.0, "grad_norm": 2.0}, examples, 6)
    assert not list(tmp_path.glob("nonfinite-*"))
    with pytest.raises(TrainingError, match=r"grad_norm is not a number at step 7; .*worker-3\.json names"):
        guard({"loss": 1.0, "grad_norm": float("inf")}, examples, 7)
    written = json.loads((tmp_path / "nonfinite-00000007-worker-3.json").read_text())
    assert written["step"] == 7
    assert written["values"] == {"loss": 1.0, "grad_norm": "inf"}
    assert written["studies"] == ["a", "b"]


@pytest.mark.usefixtures("_alone")
def test_a_model_that_refuses_its_numbers_names_the_studies(tmp_path: Path) -> None:
    with (
        pytest.raises(NonFiniteError, match=r"step 2: 32 logits are not finite; .*names the studies"),
        examined(pa.table({"study_id": ["c"]}), 2),
    ):
        raise NonFiniteLogitsError("32 logits are not finite")
    written = json.loads((tmp_path / "nonfinite-00000002-worker-3.json").read_text())
    assert (written["problem"], written["studies"]) == ("32 logits are not finite", ["c"])


@pytest.mark.usefixtures("_alone")
def test_what_one_worker_alone_may_refuse_is_no_end_of_its_own(tmp_path: Path) -> None:
    """Others may be waiting for this worker: it has to fail, or they wait for ever."""
    with (
        pytest.raises(TrainingError, match="step 2: no view is present") as raised,
        examined(pa.table({"study_id": ["c"]}), 2),
    ):
        raise ValueError("no view is present")
    assert not isinstance(raised.value, NonFiniteError)
    assert (tmp_path / "nonfinite-00000002-worker-3.json").exists()


def test_a_worker_ends_by_itself_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error would be taken for a failure, and the same steps be taken again."""
    closed: list[bool] = []

    def run() -> None:
        raise NonFiniteError("loss is not a number at step 7")

    worker = SimpleNamespace(run=run, monitor=SimpleNamespace(close=lambda: closed.append(True)))
    monkeypatch.setattr(loop, "_Worker", lambda job: worker)
    job = SimpleNamespace(config=load_config(None))
    assert loop.train_worker(job) == "loss is not a number at step 7"  # type: ignore[arg-type]
    assert closed == [True]
