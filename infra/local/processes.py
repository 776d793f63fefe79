"""Processes that carry the mark of a cluster, so that ending it finds all of them and nobody else's.

Ray's processes start others in sessions of their own, which outlive a killed parent: neither process groups nor a list
of pids would find them. What is started here carries its cluster and component in an environment variable, which every
descendant inherits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

_MARK = "RAYZERO_LOCAL_CLUSTER"


def start(
    mark: str, component: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start ``command`` detached from this terminal, its output appended to ``log``."""
    marked = {
        **environment,
        _MARK: f"{mark}/{component}",
        # Ray renames its processes; unless told so, over the memory in which the kernel shows the environment.
        "SPT_NOENV": "1",
    }
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=marked,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def find(mark: str, component: str | None = None) -> list[int]:
    """Pids of the living processes of a cluster, or of one of its components."""
    prefix = f"{_MARK}={mark}/{component or ''}".encode()
    marks = ((pid, next((v for v in values if v.startswith(prefix)), None)) for pid, values in _environments())
    return [pid for pid, value in marks if value is not None and (component is None or value == prefix)]


def end(mark: str, component: str | None = None, *, patience: float = 10.0) -> None:
    """End them: asked first, then killed after ``patience`` seconds (0: killed at once). Returns when all are gone."""
    deadline = time.monotonic() + patience
    asked: set[int] = set()
    # Again and again, because a process that is being ended may have started another one.
    while pids := find(mark, component):
        late = time.monotonic() >= deadline
        for pid in pids:
            if late or pid not in asked:
                _send(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked.update(pids)
        time.sleep(0.2)


def memory_mib(pids: Iterable[int]) -> int:
    """Memory that the processes hold, pages that several share counted once among them."""
    return sum(_proportional_kib(pid) for pid in pids) // 1024


def _proportional_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # ended meanwhile
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _send(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
        # Where it was started by this process: leave no zombie.
        os.waitpid(pid, os.WNOHANG)
    except (ProcessLookupError, ChildProcessError):
        pass


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                yield int(folder.name), (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # ended meanwhile, or another user's
