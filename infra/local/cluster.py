"""Start, look at and end a local cluster: a head, workers, and what watches them."""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from subprocess import Popen
from typing import Literal

from optuna.storages import RDBStorage

from infra.local import processes
from infra.local.components import BIN, Component, check_programs, client_environment, components, newest_study
from infra.local.errors import ClusterError
from infra.local.network import Kind, free_ports, plan
from infra.local.settings import NODE_PORTS, PORTS, Settings, load, write_private

_MONITORING = Path(__file__).parents[1] / "monitoring"
_SECONDS_TO_START = 300.0
# Ray gives a node 30 seconds to report itself, which a busy machine exceeds; trying again finds the files in memory.
_TOO_SLOW, _ATTEMPTS = "timed out during startup", 3


def up(
    folder: Path, *, runs: Path, workers: int = 2, cpus: int = 2, network: Literal["auto"] | Kind = "auto", redis: bool
) -> Settings:
    """Start a cluster that keeps its state in ``folder`` and wait until all of it answers.

    ``cpus`` is what each worker offers. With ``redis`` the head's state survives the head. Raises ClusterError when a
    cluster of that folder is up already, a program is missing, or a component does not start; then nothing stays.
    """
    folder = folder.resolve()
    check_programs(redis)
    if load(folder) is not None:
        if status(folder):
            raise ClusterError(f"the cluster of {folder} is up; `make cluster-down` ends it")
        down(folder)  # the machine was restarted, or everything was killed: what is left are files
    settings = _prepare(folder, runs.resolve(), workers, cpus, network, redis)
    try:
        settings.network.create()
        _start_all(settings)
        _await_nodes(settings)
    except BaseException:
        logs = _keep_logs(settings)
        down(folder)
        print(f"logs of the failed start: {logs}")
        raise
    return settings


def down(folder: Path) -> bool:
    """End every process of the cluster of ``folder`` and remove its network and session; False when there is none.

    Logs and metrics stay in the folder.
    """
    folder = folder.resolve()
    settings = load(folder)
    if settings is None:
        return False
    processes.end(settings.mark)
    settings.network.remove()
    shutil.rmtree(settings.temp, ignore_errors=True)
    for name in ("token", "redis-password", "redis.conf", "environment.sh", "session", "cluster.json"):
        (folder / name).unlink(missing_ok=True)
    return True


def kill(settings: Settings, name: str) -> int:
    """End a component with SIGKILL, as a fault does; returns the number of its processes."""
    component = _component(settings, name)
    count = len(processes.find(settings.mark, component.name))
    processes.end(settings.mark, component.name, patience=0)
    return count


def restart(settings: Settings, name: str) -> None:
    """Start a component (again) and wait until it answers. Raises ClusterError when it does not."""
    component = _component(settings, name)
    processes.end(settings.mark, component.name)
    if component.name == "head":
        # Ray would take the other nodes' raylets, which name the head's address on this machine, for a running head.
        (settings.temp / "ray_current_cluster").unlink(missing_ok=True)
    _await(settings, component, _start(settings, component))


def status(folder: Path) -> dict[str, list[int]]:
    """The pids of the living processes of each component; empty when no cluster is up."""
    settings = load(folder.resolve())
    if settings is None or not processes.find(settings.mark):
        return {}
    return {component.name: processes.find(settings.mark, component.name) for component in components(settings)}


def alive_nodes(settings: Settings) -> list[str]:
    """Addresses of the nodes that the head takes for alive."""
    with _ask(f"{settings.dashboard}/nodes?view=summary", settings) as answer:
        nodes = json.load(answer)["data"]["summary"]
    return sorted(node["raylet"]["nodeManagerAddress"] for node in nodes if node["raylet"].get("state") == "ALIVE")


def describe(settings: Settings) -> str:
    """What to open and what to type."""
    where = {"namespaces": "network namespaces of their own", "loopback": "this machine's loopback interface"}
    ports = settings.ports
    lines = [
        f"Ray dashboard     {settings.dashboard}   (asks for the token in {settings.token_file})",
        f"Prometheus        http://127.0.0.1:{ports['prometheus']}",
        f"TensorBoard       http://127.0.0.1:{ports['tensorboard']}   of {settings.runs}",
        f"Optuna dashboard  http://127.0.0.1:{ports['optuna']}   of {newest_study(settings)}",
        f"nodes             {', '.join(alive_nodes(settings))} in {where[settings.network.kind]}",
        "",
        f"submit a job      source {shlex.quote(str(settings.folder / 'environment.sh'))}",
        "                  ray job submit --working-dir . -- python -m jobs.pretrain --preset quickstart \\",
        f"                      data.lake={settings.runs / 'demo' / 'lake'} storage={settings.runs}",
        "                      (make demo makes that lake)",
        "stop everything   make cluster-down",
    ]
    return "\n".join(lines)


def _prepare(
    folder: Path, runs: Path, workers: int, cpus: int, network: Literal["auto"] | Kind, redis: bool
) -> Settings:
    """Choose addresses and write the files that the components read."""
    for made in (folder / "logs", runs):
        made.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    place = plan(network, f"rz{mark[:6]}", workers)
    taken: set[int] = set()
    in_a_row = {"nodes": len(NODE_PORTS) * (workers + 1)}
    ports = {name: free_ports(preferred, in_a_row.get(name, 1), taken) for name, preferred in PORTS.items()}
    settings = Settings(
        folder=folder,
        temp=Path(tempfile.mkdtemp(prefix="ray-")),
        runs=runs,
        mark=mark,
        network=place,
        ports=ports,
        cpus=cpus,
        redis=redis,
    )
    settings.save()
    write_private(settings.token_file, secrets.token_hex(32))
    write_private(folder / "environment.sh", _shell_environment(settings))
    shutil.copy(_MONITORING / "prometheus-local.yaml", folder / "prometheus.yaml")
    shutil.copy(_MONITORING / "alerts.yaml", folder / "alerts.yaml")
    (folder / "session").symlink_to(settings.temp)
    # Optuna's dashboard wants a database, be it without a study.
    RDBStorage(f"sqlite:///{newest_study(settings)}")
    if redis:
        password = secrets.token_hex(32)
        write_private(folder / "redis-password", password)
        lines = [f"requirepass {password}", "bind 127.0.0.1", f"port {ports['redis']}", f"dir {folder}", 'save ""']
        # A title would be written over the mark that tells whose process this is.
        write_private(folder / "redis.conf", "\n".join([*lines, "set-proc-title no", ""]))
    return settings


def _shell_environment(settings: Settings) -> str:
    """What a shell sources to have the cluster's programs, address and token."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in client_environment(settings).items()]
    return "\n".join(["unset RAY_AUTH_TOKEN", f'export PATH={shlex.quote(str(BIN))}:"$PATH"', *exports, ""])


def _start_all(settings: Settings) -> None:
    """Start what others need first, then the rest at once."""
    needed = [c for c in components(settings) if c.name in ("redis", "head")]
    for component in needed:
        _await(settings, component, _start(settings, component))
    rest = [c for c in components(settings) if c not in needed]
    started = [_start(settings, component) for component in rest]
    for component, process in zip(rest, started, strict=True):
        _await(settings, component, process)


def _start(settings: Settings, component: Component) -> Popen[bytes]:
    return processes.start(
        settings.mark,
        component.name,
        component.command,
        environment=component.environment,
        log=_log(settings, component),
    )


def _await(settings: Settings, component: Component, process: Popen[bytes]) -> None:
    """Wait until ``component`` answers."""
    log = _log(settings, component)
    deadline = time.monotonic() + _SECONDS_TO_START
    attempts = 1
    while not all(_answers(where, settings) for where in component.answers_at):
        if process.poll() is not None and _TOO_SLOW in _tail(log) and attempts < _ATTEMPTS:
            attempts += 1
            processes.end(settings.mark, component.name)
            process = _start(settings, component)
        elif process.poll() is not None:
            raise ClusterError(f"{component.name} ended with code {process.returncode}; {log} says:\n{_tail(log)}")
        elif time.monotonic() > deadline:
            raise ClusterError(
                f"{component.name} did not answer at {', '.join(component.answers_at)} within "
                f"{_SECONDS_TO_START:.0f} s; {log} says:\n{_tail(log)}"
            )
        time.sleep(0.3)


def _log(settings: Settings, component: Component) -> Path:
    return settings.folder / "logs" / f"{component.name}.log"


def _component(settings: Settings, name: str) -> Component:
    every = {component.name: component for component in components(settings)}
    if name not in every:
        raise ClusterError(f"no component {name!r}; this cluster has {', '.join(every)}")
    return every[name]


def _await_nodes(settings: Settings) -> None:
    """Wait until the head has taken in every node."""
    wanted = settings.network.workers + 1
    deadline = time.monotonic() + _SECONDS_TO_START
    while len(nodes := alive_nodes(settings)) < wanted:
        if time.monotonic() > deadline:
            raise ClusterError(f"only {len(nodes)} of {wanted} nodes joined ({', '.join(nodes)})")
        time.sleep(0.5)


def _answers(where: str, settings: Settings) -> bool:
    if not where.startswith("http"):
        host, _, port = where.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError:
            return False
        return True
    try:
        _ask(where, settings).close()
    except urllib.error.HTTPError as error:
        # Ray's agents ask for a token where they are asked for health, too; a 5xx is still coming up.
        return error.code < 500
    except OSError:
        return False
    return True


def _ask(url: str, settings: Settings) -> HTTPResponse:
    """GET, with the token where Ray asks for it."""
    request = urllib.request.Request(url)
    if url.startswith(settings.dashboard):
        request.add_header("Authorization", f"Bearer {settings.token_file.read_text()}")
    response: HTTPResponse = urllib.request.urlopen(request, timeout=5)
    return response


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _keep_logs(settings: Settings) -> Path:
    """Copy Ray's own logs out of the session that is about to go."""
    logs = settings.folder / "logs"
    session = settings.temp / "session_latest" / "logs"
    if session.is_dir():
        shutil.copytree(session, logs / "session", dirs_exist_ok=True, ignore=shutil.ignore_patterns("old"))
    return logs
