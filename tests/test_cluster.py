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


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://ray.example.org"])
def test_the_address_of_a_dashboard_is_for_jobs(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConnectionError, match=f"'{address}' is the address of a dashboard.*ray job submit.*unset"):
        join()
