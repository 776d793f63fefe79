"""What is read of checkpoints: weights for a bundle, and the files of one checkpoint alone."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import ray.train
import torch
from safetensors.torch import save_file
from torch import nn

from rayzero.training import average, manifest
from rayzero.training.checkpoint import TAG, Checkpoints, load_weights
from rayzero.training.manifest import Manifest, read_stored
from rayzero.training.run_storage import train_storage


def test_an_average_is_laid_over_the_buffers_that_training_changed(tmp_path: Path) -> None:
    trained = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for _ in range(3):
        trained(torch.randn(8, 2) + 5)
    (tmp_path / TAG).mkdir()
    torch.save({"module": trained.state_dict()}, tmp_path / TAG / "mp_rank_00_model_states.pt")
    averaged = {name: value.detach() + 1 for name, value in trained.named_parameters()}
    save_file(averaged, tmp_path / average.FILE)
    about = Manifest(0, 1, 0, 3, {}, {}, manifest.describe(tmp_path))
    (tmp_path / Manifest.name(0)).write_bytes(about.dump())
    fs = fsspec.filesystem("file")
    stored = read_stored(fs, str(tmp_path))
    assert stored is not None
    fresh = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    load_weights(fresh, fs, stored)  # type: ignore[arg-type]
    for name, value in fresh.named_parameters():
        torch.testing.assert_close(value, averaged[name])
    for name, value in fresh.named_buffers():
        torch.testing.assert_close(value, dict(trained.named_buffers())[name])


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Checkpoints]:
    """Those of the one worker of a run in an object store."""
    root = f"/{uuid.uuid4().hex}"
    filesystem, path = train_storage(f"memory:/{root}")
    storage = SimpleNamespace(experiment_fs_path=path, storage_filesystem=filesystem)
    alone = dict.fromkeys(("get_world_rank", "get_local_rank", "get_node_rank"), lambda: 0)
    context = SimpleNamespace(**alone, get_world_size=lambda: 1, get_storage=lambda: storage)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield Checkpoints(zero_stage=1)
    store = fsspec.filesystem("memory")
    if store.exists(root):
        store.rm(root, recursive=True)


def store(checkpoints: Checkpoints, tmp_path: Path, step: int, *files: str) -> str:
    folder, name = tmp_path / "made", f"checkpoint-{step:08d}"
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"{step} {file}")
    about = Manifest(0, 1, 1, step, {}, {}, manifest.describe(folder))
    (folder / Manifest.name(0)).write_bytes(about.dump())
    for path in (path for path in folder.rglob("*") if path.is_file()):
        checkpoints._fs.pipe_file(f"{checkpoints._root}/{name}/{path.relative_to(folder)}", path.read_bytes())
    shutil.rmtree(folder)
    return name


def test_of_a_damaged_checkpoint_nothing_is_left_beside_the_one_before(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = store(checkpoints, tmp_path, 4, "deepspeed/a.pt")
    newer = store(checkpoints, tmp_path, 8, "deepspeed/a.pt", "deepspeed/shard.pt", "deepspeed/z.pt")
    checkpoints._fs.pipe_file(f"{checkpoints._root}/{newer}/deepspeed/z.pt", b"damaged")
    found, problem = checkpoints._fetch(newer)
    assert (found, problem) == (None, "z.pt has 7 bytes instead of 16")
    found, problem = checkpoints._fetch(older)
    assert found is not None
    assert problem is None
    assert sorted(path.name for path in found.folder.rglob("*.pt")) == ["a.pt"]
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    checkpoints.discard()
    assert not found.folder.exists()


def test_nodes_that_share_a_disk_convert_apart(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them empties the folder that it converts a checkpoint to."""
    monkeypatch.setattr(checkpoints._context, "get_node_rank", lambda: 1)
    other = Checkpoints(zero_stage=1)
    assert other._universal.parent == checkpoints._universal.parent
    assert other._universal != checkpoints._universal
