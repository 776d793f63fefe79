"""The guard against losses and gradients that are no numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray.train

from rayzero.training.errors import TrainingError
from rayzero.training.nonfinite import examined, guard
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
        pytest.raises(TrainingError, match=r"step 2: 32 logits are not finite; .*names the studies"),
        examined(pa.table({"study_id": ["c"]}), 2),
    ):
        raise ValueError("32 logits are not finite")
    written = json.loads((tmp_path / "nonfinite-00000002-worker-3.json").read_text())
    assert (written["problem"], written["studies"]) == ("32 logits are not finite", ["c"])
