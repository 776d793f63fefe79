"""One driver per run, on folders and on object stores."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from rayzero.storage import open_url
from rayzero.training import owner
from rayzero.training.errors import TrainingError
from rayzero.training.owner import FILE, owned


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(owner, "_SETTLE_SECONDS", 0.0)


@pytest.fixture(params=["folder", "store"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A run folder, and one in a store whose files are written as a whole only."""
    if request.param == "folder":
        yield str(tmp_path / "runs" / "one")
        return
    root = f"/{uuid.uuid4().hex}"
    yield f"memory:/{root}/one"
    fsspec.filesystem("memory").rm(root, recursive=True)


def test_a_run_has_one_driver_at_a_time(run: str) -> None:
    fs, root = open_url(run)
    with (
        owned(run),
        pytest.raises(TrainingError, match=r"is being trained by process \d+ on .*; wait for it, end it, or choose"),
        owned(run),
    ):
        pytest.fail("two drivers")
    # The one that was refused has taken nothing away, and the first has left nothing.
    assert not fs.exists(f"{root}/{FILE}")
    with owned(run):
        assert fs.exists(f"{root}/{FILE}")


def left(run: str, machine: str, process: int) -> None:
    """The record of a driver that was killed."""
    fs, root = open_url(run)
    fs.makedirs(root, exist_ok=True)
    fs.pipe_file(
        f"{root}/{FILE}",
        json.dumps({"owner": "killed", "machine": machine, "process": process, "beat": 9}).encode(),
    )


def test_a_driver_that_died_on_this_machine_is_succeeded_at_once(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left(run, owner._machine(), dead.pid)
    with owned(run):
        pass
    assert capsys.readouterr().out == ""


def test_a_driver_that_died_elsewhere_is_succeeded_when_it_gives_no_sign(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left(run, "another", 1)
    with owned(run):
        pass
    assert "has a driver, process 1 on another: looking whether it lives" in capsys.readouterr().out
