"""The command line and the environment of each component of a local cluster."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from infra.local.errors import ClusterError
from infra.local.settings import NODE_PORTS, Settings

BIN = Path(sys.executable).parent
_ROOT = Path(__file__).parents[2]
_CODE = (str(_ROOT), str(_ROOT / "platform"))

# Debian packages of the programs that pip cannot install.
_PACKAGES = {"prometheus": "prometheus", "redis-server": "redis-server"}


@dataclass(frozen=True)
class Component:
    """A process to start, and the URLs (or host:port) at which it answers once all of it is up."""

    name: str
    command: list[str]
    answers_at: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def components(settings: Settings) -> list[Component]:
    """All components, in the order in which they start."""
    workers = [_worker(settings, index) for index in range(1, settings.network.workers + 1)]
    pages = [_prometheus(settings), _tensorboard(settings), _optuna(settings)]
    return [*([_redis(settings)] if settings.redis else []), _head(settings), *workers, *pages]


def check_programs(redis: bool) -> None:
    """Raises ClusterError when a program is missing, naming its package."""
    for program in ["prometheus", *(["redis-server"] if redis else [])]:
        if shutil.which(program) is None:
            raise ClusterError(
                f"{program} is missing: sudo apt-get install --no-install-recommends {_PACKAGES[program]}"
            )


def client_environment(settings: Settings) -> dict[str, str]:
    """What a client of the cluster needs in its environment."""
    return {
        "RAY_ADDRESS": settings.dashboard,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(settings.token_file),
    }


def _base() -> dict[str, str]:
    """This process's environment without what would lead to another cluster, or past the token file."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", "RAY_USAGE_STATS_ENABLED": "0"}


def _ray(settings: Settings, index: int) -> dict[str, str]:
    """The environment of node ``index``; 0 is the head."""
    environment = {
        **_base(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(settings.token_file),
        "RAY_PROMETHEUS_HOST": f"http://127.0.0.1:{settings.ports['prometheus']}",
        # Gloo asks the machine's host name, which is the same in every namespace.
        "GLOO_SOCKET_IFNAME": settings.network.interface(index),
        # As in the images: what stands in Ray Serve's proxy (see serve/proxy.py), which no job's environment reaches.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy.middlewares",
        "PYTHONPATH": os.pathsep.join(path for path in (*_CODE, os.environ.get("PYTHONPATH")) if path),
    }
    if settings.redis:
        environment |= {
            "RAY_REDIS_ADDRESS": f"127.0.0.1:{settings.ports['redis']}",
            # Without a namespace of its own in Redis, the next cluster there would take over this one's state.
            "RAY_external_storage_namespace": settings.mark,
            "RAY_gcs_rpc_server_reconnect_timeout_s": "120",
        }
    return environment


def _head(settings: Settings) -> Component:
    ports = settings.ports
    command = [
        *[str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"],
        *["--node-ip-address", settings.network.head, "--port", str(ports["gcs"])],
        *["--dashboard-host", settings.network.head, "--dashboard-port", str(ports["dashboard"])],
        *["--ray-client-server-port", str(ports["client"]), *_node_ports(settings, 0)],
        # As on Kubernetes: the head runs drivers, the workers run tasks and actors.
        *["--num-cpus", "0", "--num-gpus", "0", "--temp-dir", str(settings.temp), *_memory(settings)],
    ]
    if settings.redis:
        command += ["--redis-password", (settings.folder / "redis-password").read_text()]
    answers_at = [f"{settings.dashboard}/api/version", _health(settings, 0)]
    return Component("head", command, answers_at, _ray(settings, 0))


def _worker(settings: Settings, index: int) -> Component:
    gpus = gpus_of(index, settings.network.workers)
    command = [
        *[*settings.network.enter(index), str(BIN / "ray"), "start", "--block", "--disable-usage-stats"],
        *["--address", settings.gcs, "--node-ip-address", settings.network.worker(index)],
        *["--num-cpus", str(settings.cpus), "--num-gpus", str(len(gpus)), *_memory(settings)],
        *_node_ports(settings, index),
    ]
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    return Component(f"worker-{index}", command, [_health(settings, index)], _ray(settings, index) | visible)


def _node_ports(settings: Settings, index: int) -> list[str]:
    first = settings.first_port(index)
    return [word for option, offset in NODE_PORTS.items() for word in (option, str(first + offset))]


def _health(settings: Settings, index: int) -> str:
    """Where a node's agent says whether its raylet lives."""
    address = settings.network.worker(index) if index else settings.network.head
    return f"http://{address}:{settings.first_port(index)}/api/local_raylet_healthz"


def gpus_of(index: int, workers: int) -> list[str]:
    """The GPUs, as CUDA names them, that worker ``index`` (from 1) of ``workers`` gets: each to one of them.

    Of those that ``CUDA_VISIBLE_DEVICES`` allows, where it is set.
    """
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        # CUDA counts from 0 whatever the numbers of the device files: a container may hold nvidia5 alone.
        every = [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    else:
        # As CUDA reads it: what follows an entry that names no device is not seen.
        every = list(takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in allowed.split(","))))
    return every[index - 1 :: workers]


def _memory(settings: Settings) -> list[str]:
    """Nodes share one machine: together their object stores take the share that Ray gives to one."""
    room = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), shutil.disk_usage("/dev/shm").total)
    each = int(0.3 * room / (settings.network.workers + 1))
    return ["--object-store-memory", str(max(each, 100 * 2**20))]


def _redis(settings: Settings) -> Component:
    # The configuration, with the password, goes by file: command lines are public on a machine.
    command = ["redis-server", str(settings.folder / "redis.conf")]
    return Component("redis", command, [f"127.0.0.1:{settings.ports['redis']}"], _base())


def _prometheus(settings: Settings) -> Component:
    address = f"127.0.0.1:{settings.ports['prometheus']}"
    command = [
        *["prometheus", "--config.file", str(settings.folder / "prometheus.yaml"), f"--web.listen-address={address}"],
        *["--storage.tsdb.path", str(settings.folder / "prometheus"), "--storage.tsdb.retention.time=7d"],
    ]
    return Component("prometheus", command, [f"http://{address}/-/ready"], _base())


def _tensorboard(settings: Settings) -> Component:
    port = str(settings.ports["tensorboard"])
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(settings.runs), "--host", "127.0.0.1"]
    return Component("tensorboard", [*command, "--port", port], [f"http://127.0.0.1:{port}/"], _base())


def _optuna(settings: Settings) -> Component:
    port = str(settings.ports["optuna"])
    command = [str(BIN / "optuna-dashboard"), f"sqlite:///{newest_study(settings)}", "--host", "127.0.0.1"]
    return Component("optuna", [*command, "--port", port], [f"http://127.0.0.1:{port}/dashboard"], _base())


def newest_study(settings: Settings) -> Path:
    """The database of the newest sweep in the runs folder; before the first one, an empty one."""
    found = sorted(settings.runs.glob("**/sweeps/*/optuna.db"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else settings.folder / "optuna.db"
