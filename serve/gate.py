"""What stands before every route: the token, the number of requests at once, and headers that keep answers private."""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import Problem, problem_response

_OPEN_PATHS = frozenset({"/healthz"})


class Gate:
    """ASGI middleware, outside the routes, so that a refused request's body is never read.

    ``token`` is the bearer token that every path but /healthz needs, or None for none. ``requests`` is the most
    POST requests worked on at once; one more is answered 503 with Retry-After. A body that announces more than
    ``max_body`` bytes is refused here; FastAPI counts the bytes of one that does not announce its size.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, requests: int, max_body: int) -> None:
        self._app = app
        self._max_body = max_body
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._free = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through or answer it with a problem document."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_private(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Cache-Control"] = "no-store"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await problem_response(refusal)(scope, receive, send_private)
        elif scope["method"] == "POST":
            await self._count(scope, receive, send_private)
        else:
            await self._app(scope, receive, send_private)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._free -= 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._free += 1

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        sent = headers.get("authorization", "").encode()
        guarded = self._expected is not None and scope["path"] not in _OPEN_PATHS
        if guarded and not secrets.compare_digest(sent, self._expected or b""):
            return Problem(401, "unauthorized", "Send the header Authorization: Bearer <token>.")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_body:
            return Problem(413, "file-too-large", f"A request may have {self._max_body} bytes; this one has {length}.")
        if scope["method"] == "POST" and self._free == 0:
            return Problem(503, "busy", "Too many requests at once; try again in a second.", retry_after_s=1)
        return None
