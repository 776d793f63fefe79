"""Python environments for tests of what is, and of what is not, installed."""

from __future__ import annotations

import venv
from pathlib import Path

import pytest


def without_rayzero(folder: Path) -> tuple[Path, Path]:
    """A new environment with everything that this one has but RayZero: its ``bin`` and its ``site-packages``.

    Packages are linked: gigabytes are not fetched again.
    """
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*/site-packages"))
    for entry in Path(pytest.__file__).parents[1].iterdir():
        if not entry.name.startswith(("rayzero", "__editable__")) and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    return folder / "bin", site
