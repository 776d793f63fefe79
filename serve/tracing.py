"""Spans of requests and their stages, for OpenTelemetry: none are recorded until the operator's hook says whither.

A trace goes on from the caller through the web side into the model's replica. Ray Serve has tracing of its own
(``tracing_config``): it sets the provider itself, hands its spans on between replicas, and those of this module then
stand within them. Without it a handle carries nothing along, so the context is sent with the question.

Spans name routes, stages and models, never images, prompts or clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rayzero.config import ConfigError
from serve.problems import Problem

# Asked for anew whenever a provider is set: until then it is one that does nothing.
_TRACER = trace.get_tracer("rayzero.serve")
_W3C = TraceContextTextMapPropagator()


@cache
def set_up(hook: str) -> None:
    """Call ``hook`` (package.module:function), which sets OpenTelemetry's tracer provider: once in a process.

    Raises ConfigError.
    """
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
    # An exception's text and traceback may hold anything; what is told of it is the problem's name.
    with _TRACER.start_as_current_span(
        "request", _parent(headers), trace.SpanKind.SERVER, record_exception=False, set_status_on_exception=False
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


def carried() -> dict[str, str]:
    """The span at hand as W3C headers, for another process to go on from; nothing where none is recorded."""
    headers: dict[str, str] = {}
    _W3C.inject(headers)
    return headers


@contextmanager
def stage_span(stage: str, model: str, caller: Mapping[str, str] | None = None) -> Iterator[None]:
    """A span of one stage, within the span at hand, or the one that ``caller`` carried here from another process."""
    parent, kind = (None, trace.SpanKind.INTERNAL) if caller is None else (_parent(caller), trace.SpanKind.SERVER)
    with _TRACER.start_as_current_span(
        stage, parent, kind, {"rayzero.model": model}, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", error.slug if isinstance(error, Problem) else type(error).__name__)
            raise


def record_stage(stage: str, model: str, began_ns: int, ended_ns: int) -> None:
    """A span, within the one at hand, of a stage that is over; times as of ``time.time_ns``."""
    _TRACER.start_span(stage, attributes={"rayzero.model": model}, start_time=began_ns).end(ended_ns)


def _parent(headers: Mapping[str, str]) -> Context | None:
    """What a span goes on from: the one at hand, which only Ray Serve sets that early, or the sender's."""
    return None if trace.get_current_span().get_span_context().is_valid else _W3C.extract(headers)
