"""``ray job submit`` on a cluster of its own, whose machines have everything installed but RayZero itself."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.environments import without_rayzero
from tests.toys import toy_lake

pytestmark = pytest.mark.cluster

RAY = ("-m", "ray.scripts.scripts")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def python(tmp_path: Path) -> str:
    """The machines' Python, which does not find RayZero."""
    programs, _ = without_rayzero(tmp_path / "machine")
    found = subprocess.run([str(programs / "python"), "-P", "-c", "import rayzero"], env=outside(), capture_output=True)
    assert b"ModuleNotFoundError" in found.stderr
    return str(programs / "python")


def outside() -> dict[str, str]:
    """This process's environment without a way to a checkout or to a cluster."""
    return {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}


@pytest.fixture
def head(python: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node started as an operator would; yields the environment of its clients."""
    ray.shutdown()
    plain = outside() | {"PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}
    # The client of a cluster with token authentication has to be told to send one.
    plain |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ports = ["--port", "6391", "--dashboard-port", "8291", "--dashboard-agent-listen-port", "52391"]
    # A folder of its own (sockets in it, so a short name): the note of its address is found by no other program.
    folder = tempfile.mkdtemp(prefix="ray")
    start = [python, *RAY, "start", "--head", *ports, "--num-cpus", "2", "--temp-dir", folder, "--block"]
    # In the foreground, so that ending it ends this cluster alone: `ray stop` ends every cluster of the machine.
    with (tmp_path / "head.log").open("wb") as log:
        node = subprocess.Popen(start, env=plain, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while b"runtime started" not in (tmp_path / "head.log").read_bytes() and time.monotonic() < deadline:
        assert node.poll() is None, (tmp_path / "head.log").read_text()
        time.sleep(0.5)
    yield {**plain, "RAY_ADDRESS": "http://127.0.0.1:8291"}
    node.terminate()
    node.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_submitted_job_brings_the_package_and_pretrains(head: dict[str, str], python: str, tmp_path: Path) -> None:
    toy_lake(str(tmp_path / "lake"), train=32)
    # What an upload takes: the repository without its environment.
    source = tmp_path / "source"
    for name in ("jobs", "tune", "serve", "ui", "platform"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    job = ["python", "-m", "jobs.pretrain", "--preset", "quickstart", "training.steps=2"]
    settings = [f"data.lake={tmp_path}/lake", f"storage={tmp_path}/runs", "vision.resolution=64", "model.blocks=0"]
    brought = json.dumps({"working_dir": ".", "py_modules": ["platform/rayzero"]})
    submit = [python, *RAY, "job", "submit", "--runtime-env-json", brought, "--", *job, *settings]
    for _ in range(12):
        done = subprocess.run(submit, env=head, cwd=source, capture_output=True, text=True, timeout=400)
        # The agent that takes jobs comes up some seconds after the head says that it has started.
        if "No available agent" not in done.stderr:
            break
        time.sleep(5)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "succeeded" in done.stdout
    environment = json.loads((tmp_path / "runs" / "quickstart" / "environment.json").read_text())
    assert environment["packages"]["deepspeed"]
