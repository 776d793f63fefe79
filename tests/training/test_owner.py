"""One driver per run, on folders and on object stores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem

from rayzero.storage import open_url, write_whole
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
    record = {"owner": "killed", "machine": machine, "process": process, "beat": 9}
    write_whole(fs, f"{root}/{FILE}", json.dumps(record).encode())


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


def test_a_driver_that_was_succeeded_stops_and_leaves_the_record_alone(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fs, root = open_url(run)
    # Processes of a test run may ignore Ctrl-C, which their parent hears.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(TrainingError, match="went on under another driver; this one stopped"):
            drive_beside_a_successor(run)
    finally:
        signal.signal(signal.SIGINT, before)
    assert f"{run} was taken over by process 7 on another" in capsys.readouterr().out
    assert json.loads(fs.cat_file(f"{root}/{FILE}"))["owner"] == "killed"


def drive_beside_a_successor(run: str) -> None:
    """What a driver finds that slept while another one looked whether it lives."""
    fs, root = open_url(run)
    with owned(run):
        for _ in range(1000):
            # Once is not enough when it falls between the look and the write of a beat.
            if json.loads(fs.cat_file(f"{root}/{FILE}"))["owner"] != "killed":
                left(run, "another", 7)
            time.sleep(0.01)
    pytest.fail("it went on beside its successor")


def test_an_interrupt_of_the_user_stays_one(run: str) -> None:
    with pytest.raises(KeyboardInterrupt), owned(run):
        raise KeyboardInterrupt


def test_a_record_that_was_removed_or_damaged_is_written_anew(run: str) -> None:
    fs, root = open_url(run)
    with owned(run):
        for spoil in (lambda: fs.rm_file(f"{root}/{FILE}"), lambda: fs.pipe_file(f"{root}/{FILE}", b"{")):
            spoil()
            assert await_record(fs, f"{root}/{FILE}")["process"] == os.getpid()


def await_record(fs: AbstractFileSystem, path: str) -> dict[str, Any]:
    for _ in range(1000):
        with suppress(FileNotFoundError, ValueError):
            return dict(json.loads(fs.cat_file(path)))
        time.sleep(0.01)
    pytest.fail("no beat")


@pytest.mark.parametrize("trouble", ["away", "damaged"])
def test_the_end_of_a_run_waits_for_no_store_and_hides_no_error(
    run: str, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    fs, root = open_url(run)
    # No beat mends the record meanwhile.
    monkeypatch.setattr(owner, "BEAT_SECONDS", 600.0)

    def away(path: str) -> bytes:
        raise ConnectionError("the store is away")

    def patiently(*_: object) -> None:
        pytest.fail("it waits for the store")

    def fail() -> None:
        with owned(run):
            monkeypatch.setattr(owner, "patiently", patiently)
            if trouble == "away":
                monkeypatch.setattr(fs, "cat_file", away)
            else:
                fs.pipe_file(f"{root}/{FILE}", b"{")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
