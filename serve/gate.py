"""What stands before every route: the token, limits on what comes in, and a line in the log for what went out."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.held import Held, Lease
from serve.meters import REQUEST_ID, count_request, show_waiting
from serve.problems import SLUG, Problem, problem_response
from serve.settings import Limits
from serve.tracing import describe, request_span

logger = logging.getLogger("ray.serve")

_OPEN_PATHS = frozenset({"/healthz"})
# An id of the caller's is taken over where it is one: anything else could name a patient.
_CALLERS_ID = re.compile(r"[0-9a-fA-F-]{8,64}")
_TRACE = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_DIGITS = re.compile(r"[0-9]+")
_NUMBER_CHARS = 18
_CLIENTS = 10_000


@dataclass
class _Passage:
    """One request on its way through the gate."""

    id: str
    most: int
    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    received: int = 0
    sent: int = 0


class Gate:
    """ASGI middleware, outside the routes, so that a refused request's body is never read.

    ``token`` is the bearer token that every path but /healthz needs, or None for none. ``limits`` bounds POST
    requests: how many at once, how many a minute from one address, how fast a body arrives, and how many bytes all
    bodies may hold together (``held``). ``max_body`` is the most bytes of one body, ``larger`` that of single paths.
    All this is enforced while a body streams in. Each request gets an id, a line in the log and its share of the
    figures.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        limits: Limits,
        held: Held,
        max_body: int,
        larger: Mapping[str, int],
    ) -> None:
        self._app = app
        self._max_body = max_body
        self._larger = larger
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._limits = limits
        self._at_work = 0
        self._held = held
        self._rates: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through or answer it with a problem document."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        passage = _Passage(take_id(headers), self._larger.get(scope["path"], self._max_body))
        REQUEST_ID.set(passage.id)

        async def send_private(message: Message) -> None:
            if message["type"] == "http.response.start":
                passage.status = message["status"]
                out = MutableHeaders(scope=message)
                out["Cache-Control"] = "no-store"
                out["X-Content-Type-Options"] = "nosniff"
                out["X-Request-ID"] = passage.id
            else:
                passage.sent += len(message.get("body", b""))
            await send(message)

        with request_span(headers, passage.id) as span:
            try:
                refusal = self._refusal(scope, headers, passage)
                if refusal is not None:
                    scope[SLUG] = refusal.slug
                    await problem_response(refusal)(scope, receive, send_private)
                elif scope["method"] == "POST":
                    await self._work(scope, receive, send_private, passage)
                else:
                    await self._app(scope, receive, send_private)
            except Exception:
                # The framework raises what it has answered once more, for Serve to log with all its text.
                if passage.status != 500 or scope.get(SLUG) != "internal":
                    raise
            finally:
                route = getattr(scope.get("route"), "path", "none")
                describe(span, scope["method"], route, passage.status, scope.get(SLUG, ""))
                _record(scope, headers, passage, route)

    async def _work(self, scope: Scope, receive: Receive, send: Send, passage: _Passage) -> None:
        self._at_work += 1
        show_waiting(self._at_work)
        deadline = time.monotonic() + self._limits.body_seconds
        lease = self._held.lease()
        whole = False

        async def receive_bounded() -> Message:
            nonlocal whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                detail = f"The body did not arrive within {self._limits.body_seconds:g} s."
                raise Problem(408, "request-too-slow", detail) from None
            if message["type"] == "http.request":
                whole = not message.get("more_body", False)
                self._take(len(message.get("body", b"")), passage, lease)
            return message

        try:
            await self._app(scope, receive_bounded, send)
        finally:
            self._at_work -= 1
            lease.end()
            show_waiting(self._at_work)

    def _take(self, size: int, passage: _Passage, lease: Lease) -> None:
        passage.received += size
        if passage.received > passage.most:
            raise Problem(413, "file-too-large", f"A request may have {passage.most} bytes; this one has more.")
        lease.take(size)

    def _refusal(self, scope: Scope, headers: Headers, passage: _Passage) -> Problem | None:
        sent = headers.get("authorization", "").encode("latin-1")
        guarded = self._expected is not None and scope["path"] not in _OPEN_PATHS
        if guarded and not secrets.compare_digest(sent, self._expected or b""):
            return Problem(401, "unauthorized", "Send the header Authorization: Bearer <token>.")
        if _number(headers.get("content-length", "")) > passage.most:
            return Problem(413, "file-too-large", f"A request may have {passage.most} bytes; this one has more.")
        if scope["method"] != "POST":
            return None
        wait = self._wait(scope)
        if wait > 0:
            return Problem(
                429,
                "rate-limited",
                f"This address may send {self._limits.requests_per_minute} requests a minute.",
                retry_after_s=int(wait) + 1,
            )
        if self._at_work >= self._limits.requests:
            return Problem(503, "busy", "Too many requests at once; try again in a second.", retry_after_s=1)
        return None

    def _wait(self, scope: Scope) -> float:
        """Seconds until the client's address may send again; 0 takes one request off its budget."""
        rate = self._limits.requests_per_minute / 60
        if not rate:
            return 0.0
        client, now = (scope.get("client") or ("",))[0], time.monotonic()
        left, before = self._rates.pop(client, (float(self._limits.requests_per_minute), now))
        left = min(float(self._limits.requests_per_minute), left + (now - before) * rate)
        wait = 0.0 if left >= 1 else (1 - left) / rate
        self._rates[client] = (left if wait else left - 1, now)
        if len(self._rates) > _CLIENTS:
            self._rates.pop(next(iter(self._rates)))
        return wait


def _number(text: str) -> float:
    """What a header says, which may be anything; 0 for no number."""
    if not _DIGITS.fullmatch(text):
        return 0
    return int(text) if len(text) <= _NUMBER_CHARS else math.inf


def take_id(headers: Headers) -> str:
    """The id of a request: the caller's own where it is one."""
    sent = headers.get("x-request-id", "")
    return sent if _CALLERS_ID.fullmatch(sent) else uuid.uuid4().hex


def _record(scope: Scope, headers: Headers, passage: _Passage, route: str) -> None:
    """The request in the log and the figures: by its route, never by what it or its path held."""
    seconds = time.perf_counter() - passage.began
    problem = scope.get(SLUG, "")
    trace = _TRACE.fullmatch(headers.get("traceparent", ""))
    count_request(route, passage.status, problem, seconds)
    line = {
        "event": "request",
        "id": passage.id,
        "trace": trace[1] if trace else None,
        "method": scope["method"],
        "route": route,
        "status": passage.status,
        "problem": problem or None,
        "ms": round(seconds * 1000, 1),
        "bytes_in": passage.received,
        "bytes_out": passage.sent,
    }
    logger.info(json.dumps({key: value for key, value in line.items() if value is not None}))
