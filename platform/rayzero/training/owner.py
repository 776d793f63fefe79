"""One driver per run: two would delete each other's unfinished checkpoints.

The driver keeps ``owner.json`` in the run folder and renews it every few seconds, as files of an object store cannot be
locked. Whoever finds the record watches whether it is renewed: that needs no clocks that agree. So a driver that died
is succeeded after a while, and at once by another process of its machine, which sees that it is gone.
"""

from __future__ import annotations

import _thread
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from botocore.exceptions import BotoCoreError
from fsspec import AbstractFileSystem

from rayzero.storage import open_url, write_whole
from rayzero.training.errors import TrainingError
from rayzero.training.run_storage import patiently

FILE = "owner.json"
BEAT_SECONDS = 5.0
"""How often a driver renews its record."""
_WATCHED_BEATS = 4
_SETTLE_SECONDS = 0.5


@contextmanager
def owned(run: str) -> Iterator[None]:
    """Inside, the run folder ``run`` (a path or URL) is this process's alone.

    Raises TrainingError when another driver is at it, which takes up to four beats to find out. A process that gave no
    sign for so long that another succeeded it (a laptop that slept) is interrupted as by Ctrl-C, and raises it, too.
    """
    fs, root = open_url(run)
    path = f"{root}/{FILE}"
    patiently(lambda: fs.makedirs(root, exist_ok=True), "making the run folder")
    _await_turn(fs, path, run)
    mine = {"owner": uuid.uuid4().hex, "machine": _machine(), "process": os.getpid(), "beat": 0}
    patiently(lambda: _write(fs, path, mine), "writing down this run's driver")
    # Of several that found the place empty at once, the last to write has it.
    time.sleep(_SETTLE_SECONDS)
    _check_still(_read(fs, path), mine, run)
    done, succeeded = threading.Event(), threading.Event()
    renewing = (fs, path, run, mine, done, succeeded)
    beats = threading.Thread(target=_renew, args=renewing, name="run-owner", daemon=True)
    beats.start()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        # Ray Train, interrupted, ends with SystemExit(0): nobody should take that for a finished run.
        if succeeded.is_set():
            raise TrainingError(f"{run} went on under another driver; this one stopped") from None
        raise
    finally:
        done.set()
        beats.join()
        # Without patience: whatever ended the body should be heard now, and a record that stays is seen to be old.
        with suppress(OSError, BotoCoreError, ValueError):
            if _record(fs, path).get("owner") == mine["owner"]:
                fs.rm_file(path)


def _await_turn(fs: AbstractFileSystem, path: str, run: str) -> None:
    """Return when nobody renews the record."""
    first = _read(fs, path)
    if first is None or (first["machine"] == _machine() and not _lives(first["process"])):
        return
    deadline = time.monotonic() + _WATCHED_BEATS * BEAT_SECONDS
    print(f"{run} has a driver, process {first['process']} on {first['machine']}: looking whether it lives", flush=True)
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 4)
        now = _read(fs, path)
        if now is None:
            return
        _check_still(now, first, run)


def _check_still(now: dict[str, Any] | None, expected: dict[str, Any], run: str) -> None:
    if now is not None and now != expected:
        raise TrainingError(
            f"{run} is being trained by process {now['process']} on {now['machine']}; wait for it, end it, or choose "
            "another name"
        )


def _renew(
    fs: AbstractFileSystem,
    path: str,
    run: str,
    mine: dict[str, Any],
    done: threading.Event,
    succeeded: threading.Event,
) -> None:
    """Say every beat that this driver lives; interrupt it when another has taken its place."""
    while not done.wait(BEAT_SECONDS):
        mine["beat"] += 1
        # A store that is away is away for those who watch, too.
        with suppress(OSError, BotoCoreError):
            other = _another(fs, path, mine)
            if other is None:
                _write(fs, path, mine)
                continue
            by = f"process {other.get('process')} on {other.get('machine')}"
            print(f"{run} was taken over by {by} while this process gave no sign: stopping", flush=True)
            succeeded.set()
            _thread.interrupt_main()
            return


def _another(fs: AbstractFileSystem, path: str, mine: dict[str, Any]) -> dict[str, Any] | None:
    """The record, where it is another driver's."""
    with suppress(FileNotFoundError, ValueError):  # removed, or damaged: written anew
        record = _record(fs, path)
        return record if record.get("owner") != mine["owner"] else None
    return None


def _write(fs: AbstractFileSystem, path: str, record: dict[str, Any]) -> None:
    write_whole(fs, path, json.dumps(record).encode())


def _read(fs: AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """The record, if there is one, from a store that may be away for minutes."""
    try:
        return patiently(lambda: _record(fs, path), "looking for another driver of this run")
    except FileNotFoundError:
        return None
    except ValueError:
        raise TrainingError(f"{path} is damaged; if no other process trains this run, delete it") from None


def _record(fs: AbstractFileSystem, path: str) -> dict[str, Any]:
    """The record as it is now. Raises FileNotFoundError without one, ValueError for one that is damaged."""
    fs.invalidate_cache()
    record = json.loads(fs.cat_file(path))
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no record")
    return record


def _machine() -> str:
    """This machine's name, with its space of process ids where containers share the name."""
    try:
        space = f"/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        space = ""
    return f"{socket.gethostname()}{space}"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
