"""Addresses that cannot be opened are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayzero.config import ConfigError
from rayzero.storage import open_url
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
