from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reports.extraction.server import ChatServer, serve


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    """A server of one's own for each test."""
    with serve() as server:
        yield server
