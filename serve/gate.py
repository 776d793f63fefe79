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
from serve.meters import REQUEST_ID, count_request, show_at_work
from serve.problems import SLUG, Problem, problem_response
from serve.settings import Limits
from serve.tracing import describe, request_span

logger = logging.getLogger("ray.serve")

_OPEN_PATHS = frozenset({"/healthz"})
# Asked by machines, steadily: a limit would take a server that lives for one that does not.
_UNMETERED_PATHS = frozenset({"/healthz", "/readyz"})
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

    ``token`` is the bearer token that every path but /healthz needs, or None for none. ``limits`` bounds how many
    requests a minute come from one address (POST, and apart from them all others but checks of health), and of POST
    requests how many are worked on at once, how many bodies arrive at once and how fast, and how many bytes all bodies
    may hold together (``held``). ``max_body`` is the most bytes of one body, ``larger`` that of single paths. All this
    is enforced while a body streams in; one that still does takes no place among those worked on. Each request gets an
    id, a line in the log and its share of the figures.
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
        self._arriving = 0
        self._at_work = 0
        self._held = held
        # What is left of the budget of an address, and when that was so: for POST requests, and for others.
        self._sent: dict[str, tuple[float, float]] = {}
        self._read: dict[str, tuple[float, float]] = {}

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
        self._arriving += 1
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
                self._take(len(message.get("body", b"")), passage, lease)
                if not message.get("more_body", False):
                    if self._at_work >= self._limits.requests:
                        raise _busy()
                    whole = True
                    self._arriving -= 1
                    self._count(1)
            return message

        try:
            await self._app(scope, receive_bounded, send)
        finally:
            if whole:
                self._count(-1)
            else:
                self._arriving -= 1
            lease.end()

    def _count(self, change: int) -> None:
        self._at_work += change
        show_at_work(self._at_work)

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
        post = scope["method"] == "POST"
        if scope["path"] not in _UNMETERED_PATHS:
            most = self._limits.requests_per_minute if post else self._limits.reads_per_minute
            wait = _wait(scope, most, self._sent if post else self._read)
            if wait > 0:
                method = "POST" if post else "other than POST"
                detail = f"This address may send {most} requests a minute ({method})."
                return Problem(429, "rate-limited", detail, retry_after_s=int(wait) + 1)
        # A full server says so before a body is sent in vain.
        if post and (self._at_work >= self._limits.requests or self._arriving >= self._limits.uploads):
            return _busy()
        return None


def _busy() -> Problem:
    return Problem(503, "busy", "Too many requests at once; try again in a second.", retry_after_s=1)


def _wait(scope: Scope, most: int, budgets: dict[str, tuple[float, float]]) -> float:
    """Seconds until the client's address may send again, ``most`` a minute (0 for any); 0 takes one off its budget."""
    if not most:
        return 0.0
    rate = most / 60
    client, now = (scope.get("client") or ("",))[0], time.monotonic()
    left, before = budgets.pop(client, (float(most), now))
    left = min(float(most), left + (now - before) * rate)
    wait = 0.0 if left >= 1 else (1 - left) / rate
    budgets[client] = (left if wait else left - 1, now)
    if len(budgets) > _CLIENTS:
        budgets.pop(next(iter(budgets)))
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
