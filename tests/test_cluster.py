"""Joining a cluster that is not there is said at once."""

from __future__ import annotations

import pytest

from rayzero.cluster import join
from tests.ports import free_port


def test_an_address_that_nobody_listens_at(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ConnectionError, match=f"RAY_ADDRESS='127.0.0.1:{port}'.*unset RAY_ADDRESS"):
        join()
