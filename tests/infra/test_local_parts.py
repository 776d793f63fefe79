"""The parts of the local cluster that need no Ray: marks, networks, ports, and what it remembers."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.local import cluster, components, network, processes, settings
from infra.local.__main__ import run
from infra.local.errors import ClusterError

NAMESPACES = network.plan("auto", "rzprobe", 1).kind == "namespaces"

# A child in a session of its own that ignores SIGTERM: what a process group or a list of pids would miss.
STUBBORN = """
import os, signal, subprocess, sys, time
subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"],
    start_new_session=True)
"""


def sample(folder: Path, kind: network.Kind = "loopback", redis: bool = True) -> settings.Settings:
    where = network.Network(kind, "rzsample", 2, "10.213.250.0/24" if kind == "namespaces" else "")
    for secret in ("token", "redis-password"):
        settings.write_private(folder / secret, f"secret-{secret}")
    return settings.Settings(
        folder=folder,
        temp=Path("/tmp/ray-sample"),
        runs=folder / "runs",
        mark="sample",
        network=where,
        ports=dict(settings.PORTS),
        cpus=2,
        redis=redis,
    )


def test_ending_a_mark_ends_orphans_that_refuse_and_nobody_else(tmp_path: Path) -> None:
    ours, theirs = secrets.token_hex(4), secrets.token_hex(4)
    environment = dict(os.environ)
    for mark in (ours, theirs):
        log = tmp_path / f"{mark}.log"
        processes.start(mark, "head", [sys.executable, "-c", STUBBORN], environment=environment, log=log).wait()
        for _ in range(100):
            if log.read_text() == "up\n":
                break
            time.sleep(0.1)
    try:
        assert len(processes.find(ours)) == len(processes.find(ours, "head")) == 1
        assert processes.find(ours, "hea") == []
        assert processes.memory_mib(processes.find(ours)) > 0
        processes.end(ours, patience=0.5)
        assert processes.find(ours) == []
        assert len(processes.find(theirs)) == 1
    finally:
        processes.end(theirs, patience=0)


@pytest.mark.skipif(not NAMESPACES, reason="network namespaces are not allowed here")
def test_workers_reach_each_other_and_the_head_and_nothing_else() -> None:
    name = f"rz{secrets.token_hex(3)}"
    place = network.plan("namespaces", name, 2)
    mark = secrets.token_hex(4)
    serve = [*place.enter(1), sys.executable, "-m", "http.server", "8099", "--bind", place.worker(1)]
    place.create()
    try:
        processes.start(mark, "server", serve, environment=dict(os.environ), log=Path(os.devnull))
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex((place.worker(1), 8099)) == 0:
                    break
            time.sleep(0.1)
        ask = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).status)"
        url = f"http://{place.worker(1)}:8099/"
        neighbour = [*place.enter(2), sys.executable, "-c", ask, url]
        assert subprocess.run(neighbour, capture_output=True, text=True, check=False).stdout == "200\n"
        routes = subprocess.run([*place.enter(1), "ip", "route"], capture_output=True, text=True, check=True).stdout
        assert "default" not in routes
    finally:
        processes.end(mark, patience=0)
        place.remove()
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    assert name not in links
    assert name not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


def test_a_network_that_was_never_made_is_removed_in_peace() -> None:
    network.Network("namespaces", "rznone", 2, "10.213.251.0/24").remove()


def test_taken_ports_are_passed_over() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        taken: set[int] = set()
        first = network.free_ports(port, 4, taken)
        assert first > port
        assert taken == {first, first + 1, first + 2, first + 3}
        assert network.free_ports(first, 1, taken) > first + 3


def test_nodes_that_share_an_address_share_no_port(tmp_path: Path) -> None:
    nodes = [c for c in components.components(sample(tmp_path)) if c.name == "head" or c.name.startswith("worker")]
    assert len(nodes) == 3
    ports = [c.command[c.command.index(option) + 1] for c in nodes for option in settings.NODE_PORTS]
    assert len(set(ports)) == len(ports) == 12


def test_nodes_find_no_other_cluster_and_show_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    for component in components.components(sample(tmp_path, "namespaces")):
        assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN"} & set(component.environment)
        # Everybody on a machine may read command lines. Ray knows no other way to be told Redis' password.
        shown = {word for word in component.command if "secret-" in word}
        assert shown == ({"secret-redis-password"} if component.name == "head" else set())


def test_nodes_bring_the_middleware_of_serves_proxy_and_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    nodes = [c for c in components.components(sample(tmp_path)) if c.name == "head" or c.name.startswith("worker")]
    for node in nodes:
        root, platform, callers = node.environment["PYTHONPATH"].split(os.pathsep)
        module, function = node.environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].rsplit(".", 1)
        assert f"def {function}()" in Path(root, *module.split(".")).with_suffix(".py").read_text()
        assert Path(platform, "rayzero").is_dir()
        assert callers == "/elsewhere"
    monkeypatch.delenv("PYTHONPATH")
    # An empty entry would be whatever folder a process happens to be in.
    assert "" not in components.components(sample(tmp_path))[1].environment["PYTHONPATH"].split(os.pathsep)


def test_gpus_go_to_one_worker_each(monkeypatch: pytest.MonkeyPatch) -> None:
    # A container may hold some of a machine's device files: CUDA counts them from 0.
    devices = [Path(f"/dev/nvidia{index}") for index in (1, 10, 5)]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(devices))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert components.gpus_of(1, 2) == ["0", "2"]
    assert components.gpus_of(2, 2) == ["1"]


@pytest.mark.parametrize(
    ("allowed", "first", "second"),
    [("3, 1,2", ["3", "2"], ["1"]), ("GPU-8932f937", ["GPU-8932f937"], []), ("0,-1,2", ["0"], []), ("", [], [])],
)
def test_only_the_gpus_that_this_user_may_see_go_to_workers(
    monkeypatch: pytest.MonkeyPatch, allowed: str, first: list[str], second: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert components.gpus_of(1, 2) == first
    assert components.gpus_of(2, 2) == second


def test_what_is_saved_is_read_again_and_private(tmp_path: Path) -> None:
    saved = sample(tmp_path)
    saved.save()
    assert settings.load(tmp_path) == saved
    assert (tmp_path / "cluster.json").stat().st_mode & 0o077 == 0


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(ClusterError, match=r"prometheus is missing: sudo apt-get install .* prometheus"):
        components.check_programs(redis=False)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(ClusterError, match=r"cluster\.json is damaged"):
        settings.load(tmp_path)


def test_without_a_cluster_there_is_one_clear_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["--folder", str(tmp_path), "down"])
    assert capsys.readouterr().out == f"no cluster is up in {tmp_path}\n"
    with pytest.raises(ClusterError, match=r"no cluster is up in .*; `make cluster` starts one"):
        run(["--folder", str(tmp_path), "status"])


def test_an_unknown_component_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no component 'worker-9'; this cluster has redis, head, worker-1, worker-2"):
        cluster.kill(sample(tmp_path), "worker-9")


def test_a_shell_that_sources_the_environment_has_the_programs_and_the_address(tmp_path: Path) -> None:
    folder = tmp_path / "with a space"
    folder.mkdir()
    local = sample(folder)
    (folder / "environment.sh").write_text(cluster._shell_environment(local))
    script = '. ./environment.sh; command -v ray; echo "$RAY_ADDRESS"; cat "$RAY_AUTH_TOKEN_PATH"'
    # A fresh one, whose PATH knows nothing of where this is installed.
    environment = {"PATH": "/usr/bin:/bin", "RAY_AUTH_TOKEN": "another"}
    shell = ["sh", "-euc", f'{script}; test -z "${{RAY_AUTH_TOKEN:-}}"']
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    ray, address, token = done.stdout.splitlines()
    assert (ray, address) == (str(components.BIN / "ray"), local.dashboard)
    assert token == "secret-token"
