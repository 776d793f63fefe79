"""What stands in Ray Serve's own proxy, before the server: what fails there is told as the contract says, too.

    export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.proxy.middlewares PYTHONPATH=.
    serve run serve/config.yaml

The proxy's process has to have this in its environment when Ray starts: no Serve config reaches it. The container
image has it. Without it a request in flight on a web replica that dies is answered 500 in plain text.
"""

from __future__ import annotations

import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.gate import take_id
from serve.problems import Problem, problem_response

logger = logging.getLogger("ray.serve")

# Of the proxy's own making, in plain text: over its time, or no replica to ask.
_ITS_OWN = (408, 503)


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy calls at its start."""
    return [Middleware(Door)]


class Door:
    """ASGI middleware in the proxy: an answer that does not come is a problem document, and may be asked for again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, unless the proxy would fail at its headers, and answer it where nobody does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = take_id(Headers(scope=scope))
        answered = False

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        async def send_known(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
                answered = not (message["status"] in _ITS_OWN and kind.startswith("text/plain"))
            if answered:
                await send(message)

        # Ray Serve takes what it knows of these for UTF-8, unasked.
        if not all(_is_text(value) for _, value in scope["headers"]):
            wrong = Problem(400, "invalid-request", "A header holds what is no UTF-8.")
            await problem_response(wrong)(scope, receive, send_named)
            return
        try:
            await self._app(scope, receive, send_known)
        except Exception as error:
            # Nothing of it is told: what it says may hold anything.
            logger.error("request %s failed in the proxy: %s", request_id, type(error).__name__)
        if not answered:
            detail = "The server stopped, or took too long, while it worked on this request; ask again."
            interrupted = Problem(503, "interrupted", detail, retry_after_s=2)
            await problem_response(interrupted)(scope, receive, send_named)


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
