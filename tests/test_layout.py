"""The layout and the direction of imports, checked from the code's own import statements."""

from __future__ import annotations

import ast
import platform
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "platform" / "rayzero"

# What each room of the library may import from the others; itself, the foundation and the Study contract always.
FOUNDATION = {"config", "errors", "storage"}
ROOMS = {
    "cluster": set(),
    "studies": {"cluster", "reports"},
    "reports": set(),
    "phantom": set(),
    "ops": set(),
    "metrics": set(),
    "encoders": set(),
    "alignment": {"encoders", "ops"},
    "bundle": {"alignment", "studies"},
    "index": {"alignment"},
    "training": {"alignment", "bundle", "encoders", "metrics", "ops", "studies"},
    "evaluation": {"alignment", "bundle", "metrics", "phantom", "studies"},
}
CONTRACT = {"rayzero.studies", "rayzero.studies.study"}
# Third-party packages that only some rooms may import.
RESERVED = {
    "ray": {"cluster", "studies", "training", "evaluation", "jobs", "tune", "serve"},
    "deepspeed": {"training"},
    "gradio": {"ui"},
    "fastapi": {"serve"},
}


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at any depth of nesting."""
    package = path.relative_to(ROOT / "platform").parent.parts if LIBRARY in path.parents else ()
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def room_of(path: Path) -> str:
    """The room (first folder or file below rayzero), or the top-level package."""
    parent = LIBRARY if LIBRARY in path.parents else ROOT
    return path.relative_to(parent).parts[0].removesuffix(".py")


def library_files() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


def top_files() -> list[Path]:
    return sorted(path for name in ("jobs", "tune", "serve", "ui") for path in (ROOT / name).rglob("*.py"))


def test_platform_is_a_source_root_not_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert platform.system()


def test_every_room_is_known() -> None:
    rooms = {room_of(path) for path in library_files()} - {"__init__"} - FOUNDATION
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("path", library_files(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_library_imports_go_down(path: Path) -> None:
    room = room_of(path)
    if room in {"__init__"} | FOUNDATION:
        allowed: set[str] = set()
    else:
        allowed = ROOMS[room] | {room}
    names = {name for name in imports(path) if name.startswith("rayzero.")}
    names = {name for name in names if name not in CONTRACT and not name.startswith("rayzero.studies.study.")}
    used = {name.split(".")[1] for name in names} - FOUNDATION - {"__version__"}
    assert used <= allowed, f"{room} may not import {sorted(used - allowed)}"
    assert not {n for n in imports(path) if n.split(".")[0] in ("jobs", "tune", "serve", "ui", "tests")}


@pytest.mark.parametrize("path", [*library_files(), *top_files()], ids=lambda path: str(path.relative_to(ROOT)))
def test_reserved_packages_stay_in_their_rooms(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path)}
    for package, rooms in RESERVED.items():
        if package in used:
            assert room_of(path) in rooms, f"{package} may not be imported in {room_of(path)}"


def test_the_page_knows_the_server_by_http_only() -> None:
    for path in (ROOT / "ui").rglob("*.py"):
        assert not {n.split(".")[0] for n in imports(path)} & {"torch", "rayzero", "serve", "jobs", "tune", "ray"}, path


def test_the_server_reaches_the_library_through_bundles_and_studies() -> None:
    for path in (ROOT / "serve").rglob("*.py"):
        rooms = {name.split(".")[1] for name in imports(path) if name.startswith("rayzero.")}
        assert rooms <= {"bundle", "index", "studies", "alignment", "reports"} | FOUNDATION, (path, rooms)
        assert not {name.split(".")[0] for name in imports(path)} & {"jobs", "tune", "ui"}, path
