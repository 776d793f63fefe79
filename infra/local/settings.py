"""What a local cluster is told, and what it remembers in its folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.local.errors import ClusterError
from infra.local.network import Network

# Preferred ports; the next free one is taken where another program has it.
PORTS = {
    "gcs": 6379,
    "dashboard": 8265,
    "nodes": 52365,
    # Ray's own, 10001, is next to the range that its workers take.
    "client": 8901,
    "prometheus": 9090,
    "tensorboard": 6006,
    "optuna": 8080,
    "redis": 6400,
}
# What each node listens at, counted from its own first port. Where Ray may choose them, a node registers only after its
# agents have started and told their choice; on a busy machine that takes longer than it waits.
NODE_PORTS = {
    "--dashboard-agent-listen-port": 0,
    "--dashboard-agent-grpc-port": 1,
    "--metrics-export-port": 2,
    "--runtime-env-agent-port": 3,
}


@dataclass(frozen=True)
class Settings:
    """A cluster that is up, or being started.

    ``folder`` keeps its state, token, logs and metrics; ``temp`` Ray's session (a short path, because sockets lie
    below it); ``runs`` is what TensorBoard and the Optuna dashboard show.
    """

    folder: Path
    temp: Path
    runs: Path
    mark: str
    network: Network
    ports: dict[str, int]
    cpus: int
    redis: bool

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://{self.network.head}:{self.ports['dashboard']}"

    @property
    def gcs(self) -> str:
        """What nodes join."""
        return f"{self.network.head}:{self.ports['gcs']}"

    def first_port(self, index: int) -> int:
        """The first port of node ``index``; 0 is the head. Nodes that share an address have different ones."""
        shared = self.network.kind == "loopback"
        return self.ports["nodes"] + (len(NODE_PORTS) * index if shared else 0)

    @property
    def token_file(self) -> Path:
        """The token that every request to the cluster must carry."""
        return self.folder / "token"

    def save(self) -> None:
        """Remember the cluster, readable by this user alone."""
        state = {**asdict(self), "folder": str(self.folder), "temp": str(self.temp), "runs": str(self.runs)}
        write_private(self.folder / "cluster.json", json.dumps(state, indent=2))


def load(folder: Path) -> Settings | None:
    """The cluster that ``folder`` remembers, if any. Raises ClusterError when its file is damaged."""
    path = folder / "cluster.json"
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        state |= {name: Path(state[name]) for name in ("folder", "temp", "runs")}
        return Settings(**{**state, "network": Network(**state["network"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{path} is damaged ({error!r}); end its processes, then delete the file") from None


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user may read, whatever was there before."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
