"""The door in Ray Serve's proxy, before applications that fail as the proxy does."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.proxy import Door


async def _silent(scope: Scope, receive: Receive, send: Send) -> None:
    """What the proxy does where the replica dies."""


async def _raising(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("Roe")


def _ask(app: ASGIApp, **headers: bytes) -> httpx.Response:
    sent = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return TestClient(Door(app)).get("/", headers=sent)


@pytest.mark.parametrize(
    "app",
    [
        _silent,
        _raising,
        PlainTextResponse("Request 1 timed out after 90s.", 408),
        PlainTextResponse("Roe", 503, {"X-Request-ID": "Roe"}),
    ],
)
def test_an_answer_that_does_not_come_may_be_asked_for_again(app: ASGIApp) -> None:
    answer = _ask(app, X_Request_ID=b"0123abcd")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert answer.json()["type"] == "urn:rayzero:problem:interrupted"
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["x-request-id"] == "0123abcd"
    assert "Roe" not in answer.text


@pytest.mark.parametrize("status", [200, 404, 408, 503])
def test_what_the_server_answers_passes(status: int) -> None:
    app = JSONResponse({"told": "as it is"}, status, {"X-Request-ID": "its own"})
    answer = _ask(app)
    assert (answer.status_code, answer.json()) == (status, {"told": "as it is"})
    assert answer.headers["x-request-id"] == "its own"


@pytest.mark.parametrize("name", [b"x-request-id", b"x-request-timeout-seconds", b"x-session-id"])
def test_headers_that_the_proxy_cannot_read_are_refused(name: bytes) -> None:
    told: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("nobody reads the body")

    async def send(message: Message) -> None:
        told.append(message)

    # The test client would make UTF-8 of it.
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"h"), (name, b"\xff\xfe")]}
    asyncio.run(Door(_raising)(scope, receive, send))
    start, body = told
    assert start["status"] == 400
    assert re.fullmatch("[0-9a-f]{32}", Headers(raw=start["headers"])["x-request-id"])
    assert json.loads(body["body"])["type"] == "urn:rayzero:problem:invalid-request"
