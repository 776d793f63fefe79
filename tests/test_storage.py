"""Addresses that cannot be opened are named; files are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from rayzero.config import ConfigError
from rayzero.storage import open_url, whole_file, write_whole
from rayzero.studies.lake import open_lake


@pytest.mark.parametrize("url", ["s4://bucket/lake", "", "smoke://x"])
def test_an_unknown_address_is_one_message(url: str) -> None:
    with pytest.raises(ConfigError):
        open_url(url)


def test_a_typing_error_in_the_lake_s_address_is_named() -> None:
    with pytest.raises(ConfigError, match=r"s4://bucket/lake: cannot be opened"):
        open_lake("s4://bucket/lake")


def test_a_folder_is_a_path_of_the_local_file_system(tmp_path: Path) -> None:
    fs, path = open_url(str(tmp_path))
    assert fs.isdir(path)
    assert path == str(tmp_path)


def test_a_small_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, path = fsspec.filesystem("file"), tmp_path / "state.json"
    write_whole(fs, str(path), b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_whole(fs, str(path), b"half")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(fs, str(path), b"new")
    assert path.read_bytes() == b"new"


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, path, calls = fsspec.filesystem("file"), tmp_path / "part", list[str]()
    replace = os.replace

    def noted(old: str, new: str) -> None:
        calls.append("replace")
        replace(old, new)

    monkeypatch.setattr("os.fsync", lambda file: calls.append(f"fsync of {os.fstat(file).st_size}"))
    monkeypatch.setattr("os.replace", noted)
    with whole_file(fs, str(path)) as file:
        file.write(b"four")
    assert calls == ["fsync of 4", "replace"]
    assert path.read_bytes() == b"four"
