"""Spans of a request: within the caller's trace, with its stages, and without what it held."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
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
from serve.deployments import Model
from serve.engine import Answer, Engine, ModelInput
from serve.examples import ExampleSet
from serve.service import Service
from serve.settings import AppArgs, Limits
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


def test_a_request_queues_for_the_passes_before_it_and_for_its_turn_in_its_own(bundle_url: str) -> None:
    tracing.set_up(f"{__name__}:hook")
    callers = ["e" * 32, "f" * 32]

    async def scenario() -> None:
        model = Model("films", bundle_url, AppArgs(bundles={"films": bundle_url}, threads=1))
        checksum = (await model.describe()).checksum

        def ask(caller: str, key: str, given: ModelInput | None) -> Coroutine[Any, Any, Answer | None]:
            carried = {"traceparent": f"00-{caller}-{'b' * 16}-01"}
            return model.answer(carried, checksum, key, given, ["There is nodule"], False, None)

        first, second = (ModelInput(np.full((1, 128, 128), grey, np.float32)) for grey in (0.3, 0.6))
        await asyncio.gather(ask(callers[0], "first", first), ask(callers[1], "second", second))
        await ask("9" * 32, "first", None)

    asyncio.run(scenario())
    found = [
        [span for span in _SPANS.get_finished_spans() if format(span.context.trace_id, "032x") == caller]
        for caller in (*callers, "9" * 32)
    ]
    for spans in found:
        answer = spans.pop()
        spans.sort(key=lambda span: (span.start_time, span.end_time))
        assert answer.start_time <= spans[0].start_time
        # No time between two stages that is none's.
        assert all(before.end_time == after.start_time for before, after in pairwise(spans))
    assert [[span.name for span in spans] for spans in found] == [
        ["queue", "encode", "queue", "score"],
        ["queue", "encode", "queue", "score"],
        ["queue", "score"],
    ]
    # They shared a pass, and the second was looked at after the first.
    assert found[1][1].start_time == found[0][1].start_time
    assert found[1][2].end_time >= found[0][3].end_time


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
