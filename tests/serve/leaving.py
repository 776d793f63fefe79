"""A client that leaves while an answer to it is drawn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any

import pytest


def drawn_for_who_left(
    ask: Callable[[], Coroutine[Any, Any, Any]], module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> int:
    """How many drawings (calls of ``module.name``) were made for ``ask``, which is left during the first of them."""
    drawn, go_on, draw = 0, threading.Event(), getattr(module, name)

    def slowly(*given: Any) -> Any:
        nonlocal drawn
        drawn += 1
        go_on.wait(30)
        return draw(*given)

    monkeypatch.setattr(module, name, slowly)

    async def leave() -> None:
        asked = asyncio.create_task(ask())
        while not drawn:
            await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        go_on.set()

    # It waits for the thread, too.
    asyncio.run(leave())
    return drawn
