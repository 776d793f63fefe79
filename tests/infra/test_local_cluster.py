"""The local cluster for real: started as `make cluster` does, worked on, hurt, and ended without a trace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml

from infra.local import cluster, processes
from infra.local.components import client_environment
from infra.local.settings import Settings, load
from rayzero.training.export import export_run
from tests.serve.conftest import png
from tests.toys import toy_lake

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DASHBOARDS = ROOT / "infra" / "monitoring" / "grafana" / "dashboards"
# What Ray exports only where there is a GPU.
GPU_ONLY = {"ray_node_gpus_utilization"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    toy_lake(str(folder / "lake"), train=32)
    return folder


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[Settings]:
    """A cluster of two workers with Redis behind its head; nothing of it may be left afterwards."""
    ray.shutdown()
    command = [sys.executable, "-m", "infra.local", "--folder", str(root / "cluster")]
    up = [*command, "up", "--redis", "--runs", str(root / "runs")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"}
    started = subprocess.run(up, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert started.returncode == 0, started.stdout + started.stderr
    settings = load(root / "cluster")
    assert settings is not None
    print(started.stdout)
    yield settings
    stopped = subprocess.run([*command, "down"], capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert stopped.stdout == "the cluster is down\n"
    assert processes.find(settings.mark) == []
    # Whatever lost its mark would still name the session or the addresses on its command line.
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(settings.temp) not in left
    assert str(settings.folder) not in left
    assert not settings.temp.exists()
    assert not settings.token_file.exists()
    if settings.network.kind == "namespaces":
        links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
        assert settings.network.name not in links


def submit(settings: Settings, *words: str, token: bool = True) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= client_environment(settings)
    if not token:
        environment |= {"RAY_AUTH_MODE": "disabled"}
        del environment["RAY_AUTH_TOKEN_PATH"]
    return subprocess.Popen(
        [str(BIN / "ray"), "job", "submit", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def await_(condition: Callable[[], Any], what: str, seconds: float = 240.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.5)
    return value


def prometheus(settings: Settings, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{settings.ports['prometheus']}/api/v1/{path}", timeout=10) as answer:
        return json.load(answer)["data"]


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_every_component_answers(running: Settings) -> None:
    counts = cluster.status(running.folder)
    assert list(counts) == ["redis", "head", "worker-1", "worker-2", "prometheus", "tensorboard", "optuna"]
    assert all(counts.values())
    if running.network.kind == "namespaces":
        assert cluster.alive_nodes(running) == [
            running.network.head,
            running.network.worker(1),
            running.network.worker(2),
        ]
    assert running.token_file.stat().st_mode & 0o077 == 0
    text = cluster.describe(running)
    for name in ("prometheus", "tensorboard", "optuna", "dashboard"):
        assert f":{running.ports[name]}" in text


def test_a_second_start_is_refused(running: Settings) -> None:
    with pytest.raises(cluster.ClusterError, match="is up; `make cluster-down` ends it"):
        cluster.up(running.folder, runs=running.runs, redis=False)


def test_a_job_without_the_token_is_refused(running: Settings) -> None:
    job = submit(running, "--no-wait", "--", "touch", str(running.folder / "entered"), token=False)
    output, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert re.search("[Uu]nauthori[sz]ed|[Aa]uthentication", output), output
    assert status_of(f"{running.dashboard}/api/jobs/") == 401
    assert not (running.folder / "entered").exists()


def test_pretraining_outlives_a_worker_node(running: Settings, root: Path) -> None:
    """The node that both training workers are on is killed; the run goes on from its checkpoint on the other."""
    extensions = root / "extensions"
    settings = [f"data.lake={root}/lake", f"storage={root}/runs", "name=toy", "vision.resolution=64", "model.blocks=0"]
    settings += ["training.steps=80", "training.checkpoint_every=10", "training.log_every=1"]
    code = {"env_vars": {"PYTHONPATH": f"{ROOT / 'platform'}", "TORCH_EXTENSIONS_DIR": str(extensions)}}
    words = ["--runtime-env-json", json.dumps(code), "--working-dir", str(ROOT), "--"]
    job = submit(running, *words, "python", "-m", "jobs.pretrain", "--preset", "quickstart", *settings)
    try:
        checkpoints = root / "runs" / "toy"
        await_(lambda: job.poll() is not None or list(checkpoints.glob("checkpoint*")), "a first checkpoint", 400)
        assert job.poll() is None, job.stdout.read() if job.stdout else ""
        victim = node_of_training(running)
        assert cluster.kill(running, victim) > 0
        output, _ = job.communicate(timeout=400)
    finally:
        job.kill()
    assert job.returncode == 0, output[-4000:]
    steps = [int(step) for step in re.findall(r"step (\d+)/80", output)]
    assert steps[-1] == 80
    # Not by steps that come twice: the lost node takes its last lines along.
    assert len(set(re.findall(r"pid=(\d+)[^\n]*step \d+/80", output))) == 2, "no worker was lost"
    # The images compile none of DeepSpeed's ops: none may be wanted.
    assert not extensions.exists() or not list(extensions.rglob("*.so"))
    cluster.restart(running, victim)
    await_(lambda: len(cluster.alive_nodes(running)) == 3, "the node's return")


def node_of_training(settings: Settings) -> str:
    """The component on which Ray Train's workers are, from the marks of their processes."""
    for index in range(1, settings.network.workers + 1):
        for pid in processes.find(settings.mark, f"worker-{index}"):
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return f"worker-{index}"
    pytest.fail("no worker of Ray Train is running")


@pytest.fixture(scope="module")
def server(running: Settings, root: Path) -> str:
    """The real server on the model just trained, with a proxy on every node where nodes have addresses."""
    bundle = str(root / "bundle")
    export_run(str(root / "runs" / "toy"), bundle)
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    apart = running.network.kind == "namespaces"
    config["proxy_location"] = "EveryNode" if apart else "HeadOnly"
    config["http_options"] |= {"host": "0.0.0.0" if apart else "127.0.0.1"}
    application = config["applications"][0]
    config["applications"] = [application]
    application["args"]["bundles"] = {"radzero": bundle}
    path = f"{ROOT / 'platform'}{os.pathsep}{ROOT}"
    application["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    (root / "serve.yaml").write_text(yaml.safe_dump(config))
    environment = {**os.environ, **client_environment(running), "PYTHONPATH": path}
    deploy = [str(BIN / "serve"), "deploy", "--address", running.dashboard, str(root / "serve.yaml")]
    done = subprocess.run(deploy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    url = f"http://{running.network.worker(1)}:{config['http_options']['port']}"
    await_(lambda: status_of(f"{url}/v1/models") == 200, "an answer of the server")
    return url


def test_every_metric_of_the_dashboards_is_exported(running: Settings, server: str) -> None:
    names = set()
    expressions = []
    for path in DASHBOARDS.glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            expressions += [target["expr"] for target in panel["targets"]]
    for expression in expressions:
        names |= set(re.findall(r"\bray_\w+", expression)) - {"ray_train_run_name"}
    assert len(names) > 20
    # What is counted is exported once it happened: a refusal, and a query by stage.
    assert status_of(f"{server}/v1/nothing") == 404
    asked = httpx.post(f"{server}/v1/query", files={"file": png()}, data={"prompts": "nodule"}, timeout=60)
    assert asked.status_code == 200, asked.text
    missing: set[str] = set()

    def complete() -> bool:
        nonlocal missing
        missing = names - GPU_ONLY - set(prometheus(running, "label/__name__/values"))
        return not missing

    deadline = time.monotonic() + 60
    while not complete() and time.monotonic() < deadline:
        status_of(f"{server}/v1/models")
        time.sleep(2)
    assert not missing
    for expression in expressions:
        concrete = expression.replace("$run", ".*").replace("$deployment", ".*")
        answer = prometheus(running, "query?" + urllib.parse.urlencode({"query": concrete}))
        assert answer["resultType"] == "vector", expression


def test_what_fails_in_the_proxy_is_answered_as_the_server_does(server: str) -> None:
    answer = httpx.get(f"{server}/v1/models", headers=[(b"X-Odd", b"\xff")], timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"] == "urn:rayzero:problem:invalid-request"


def test_requests_go_on_without_the_head(running: Settings, server: str) -> None:
    if running.network.kind != "namespaces":
        pytest.skip("on loopback the one proxy is the head's")
    assert cluster.kill(running, "head") > 0
    assert status_of(f"{running.dashboard}/api/version") == 0
    for _ in range(10):
        assert status_of(f"{server}/v1/models") == 200
    cluster.restart(running, "head")
    # The state came back from Redis: the same nodes, the same application, nothing deployed anew.
    await_(lambda: len(cluster.alive_nodes(running)) == 3, "the nodes' return to the head")
    assert status_of(f"{server}/v1/models") == 200
