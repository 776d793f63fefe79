"""Figures for Prometheus and the id of the request at hand.

Ray collects the figures of all replicas and each node offers them on its metrics port (``--metrics-export-port``).
Labels name models, stages and routes, never images, prompts or clients.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]
_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]


def request_id() -> str:
    """The id of the request that this task works on; empty outside a request."""
    return REQUEST_ID.get()


def observe_stage(stage: str, model: str, seconds: float) -> None:
    """A request spent ``seconds`` in a stage.

    They are fetch, read, prepare, model, maps (web) and queue, encode, score, search (model). An encode of several
    requests counts once.
    """
    _histogram("rayzero_stage_seconds", "Time of a request by stage", ("stage", "model")).observe(
        max(seconds, 1e-9), tags={"stage": stage, "model": model}
    )


def observe_batch(model: str, size: int) -> None:
    """A forward pass of the image encoder took ``size`` images."""
    _histogram("rayzero_batch_size", "Images in one forward pass", ("model",), sizes=True).observe(
        size, tags={"model": model}
    )


def count_cache(cache_name: str, model: str, *, hits: int, misses: int) -> None:
    """Look-ups of features: of images or of prompts."""
    for outcome, count in (("hit", hits), ("miss", misses)):
        if count:
            counter = _counter("rayzero_cache_lookups", "Features found or computed", ("cache", "model", "outcome"))
            counter.inc(count, tags={"cache": cache_name, "model": model, "outcome": outcome})


def count_request(route: str, status: int, problem: str, seconds: float) -> None:
    """A request was answered; ``problem`` is its slug or empty."""
    tags = {"route": route, "status": str(status), "problem": problem}
    _counter("rayzero_requests", "Requests answered", tuple(tags)).inc(tags=tags)
    _histogram("rayzero_request_seconds", "Time of a request", ("route",)).observe(
        max(seconds, 1e-9), tags={"route": route}
    )


def show_at_work(requests: int) -> None:
    """How many POST requests this web replica works on."""
    _gauge("rayzero_requests_at_work", "POST requests worked on").set(requests)


@cache
def _histogram(name: str, text: str, keys: tuple[str, ...], *, sizes: bool = False) -> Histogram:
    return Histogram(name, text, boundaries=_SIZES if sizes else _SECONDS, tag_keys=keys)


@cache
def _counter(name: str, text: str, keys: tuple[str, ...]) -> Counter:
    return Counter(name, text, tag_keys=keys)


@cache
def _gauge(name: str, text: str) -> Gauge:
    return Gauge(name, text)
