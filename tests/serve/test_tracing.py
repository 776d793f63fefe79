"""Spans of a request: within the caller's trace, with its stages, and without what it held."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rayzero.config import ConfigError
from rayzero.studies.sandbox import Sandbox
from serve import tracing
from serve.api import create_api
from serve.engine import Engine
from serve.examples import ExampleSet
from serve.service import Service
from serve.settings import Limits
from tests.serve.conftest import png
from tests.serve.local import LocalClient

_SPANS = InMemorySpanExporter()


def hook() -> None:
    """What an operator writes, with an exporter of theirs."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_SPANS))
    trace.set_tracer_provider(provider)


@pytest.fixture(scope="module")
def http(bundle_url: str, reader: Sandbox) -> Iterator[TestClient]:
    tracing.set_up(f"{__name__}:hook")
    model = LocalClient(Engine.load("films", bundle_url, "cpu", cached_prompts=8))
    service = Service([model], ExampleSet([]), Limits(), reader=reader)
    with TestClient(create_api(service, token=None)) as client:
        yield client


def test_a_request_is_a_span_with_its_stages(http: TestClient) -> None:
    caller = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    answer = http.post("/v1/query", files={"file": png()}, data={"prompts": "Roe"}, headers=caller).json()
    assert http.post("/v1/query", data={"prompts": "Roe", "image_id": "img-0"}).status_code == 404
    assert http.get(answer["image"]["preview"]).status_code == 200
    # None of the framework's own: they would tell the path.
    *stages, request, unread, failed, preview = _SPANS.get_finished_spans()
    assert preview.name == "GET /v1/images/{image_id}/preview.png"
    assert [span.name for span in stages] == list(answer["timings_ms"])
    assert request.name == "POST /v1/query"
    assert request.context is not None
    assert (format(request.context.trace_id, "032x"), format(request.parent.span_id, "016x")) == ("a" * 32, "b" * 16)
    assert request.attributes["rayzero.request_id"] == answer["request_id"]
    for span in stages:
        assert span.context.trace_id == request.context.trace_id
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    assert (unread.name, unread.parent.span_id) == ("read", failed.context.span_id)
    assert failed.attributes["error.type"] == unread.attributes["error.type"] == "unknown-image"
    assert failed.attributes["http.response.status_code"] == 404
    told = "".join(span.to_json() for span in _SPANS.get_finished_spans())
    assert "Roe" not in told
    assert answer["image"]["image_id"] not in told


def test_spans_stand_within_those_of_ray_serve_where_it_traces(http: TestClient) -> None:
    carried = {"traceparent": f"00-{'c' * 32}-{'d' * 16}-01"}
    _SPANS.clear()
    with tracing.stage_span("answer", "films", carried):
        pass
    with trace.get_tracer("ray.serve").start_as_current_span("replica_handle_request") as theirs:
        with tracing.stage_span("answer", "films", carried):
            pass
        with tracing.request_span(carried, "0"):
            pass
    alone, *within = [span for span in _SPANS.get_finished_spans() if span.instrumentation_scope.name != "ray.serve"]
    assert format(alone.parent.span_id, "016x") == "d" * 16
    assert [span.parent.span_id for span in within] == [theirs.get_span_context().span_id] * 2


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": "\xff" * 9000, "tracestate": "\xff=," * 9000},
        {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "=" * 9000},
    ],
)
def test_a_malformed_trace_is_passed_over(http: TestClient, headers: dict[str, str]) -> None:
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    assert http.get("/healthz", headers=sent).status_code == 200


def test_a_hook_that_is_not_there_is_named() -> None:
    for wrong in ("nowhere:hook", "serve.tracing:nothing", "serve.tracing"):
        with pytest.raises(ConfigError, match=wrong):
            tracing.set_up(wrong)
