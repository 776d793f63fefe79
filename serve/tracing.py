"""Spans of requests and their stages, for OpenTelemetry: none are recorded until the operator's hook says whither.

Spans name routes, stages and models, never images, prompts or clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rayzero.config import ConfigError

# Asked for anew whenever a provider is set: until then it is one that does nothing.
_TRACER = trace.get_tracer("rayzero.serve")


def set_up(hook: str) -> None:
    """Call ``hook`` (package.module:function), which sets OpenTelemetry's tracer provider. Raises ConfigError."""
    if not hook:
        return
    module, _, name = hook.partition(":")
    try:
        function: Callable[[], object] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"tracing: there is no {hook!r} ({error}); give package.module:function") from None
    function()


@contextmanager
def request_span(headers: Mapping[str, str], request_id: str) -> Iterator[trace.Span]:
    """A span of one request, within the caller's trace where its traceparent header names one."""
    caller = TraceContextTextMapPropagator().extract(headers)
    # An exception's text and traceback may hold anything; what is told of it is the problem's name.
    with _TRACER.start_as_current_span(
        "request", caller, trace.SpanKind.SERVER, record_exception=False, set_status_on_exception=False
    ) as span:
        span.set_attribute("rayzero.request_id", request_id)
        yield span


def describe(span: trace.Span, method: str, route: str, status: int, problem: str) -> None:
    """Say what became of the request."""
    span.update_name(f"{method} {route}")
    span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    if problem:
        span.set_attribute("error.type", problem)
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)


def record_stage(stage: str, model: str, seconds: float) -> None:
    """A span, within that of the request, of a stage that took ``seconds`` and has just ended."""
    end = time.time_ns()
    start = end - int(seconds * 1e9)
    _TRACER.start_span(stage, attributes={"rayzero.model": model}, start_time=start).end(end)
