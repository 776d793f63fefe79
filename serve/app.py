"""The Serve application: ``serve run serve/config.yaml``, or ``start`` from a program."""

# No ``from __future__ import annotations`` here: Serve turns a config file's args into AppArgs by the annotation of
# ``build``, and would find a string in its place.

from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from rayzero.config import ConfigError
from serve.allocator import KEPT_MEMORY
from serve.batches import AT_ONCE as BATCH_AT_ONCE
from serve.deployments import Model, Shelf, Web
from serve.settings import AppArgs

APP_NAME = "rayzero"

# Batches of one model that it may hold: one at work, and one that gathers meanwhile.
_BATCHES = 2
# The gate writes one line for a request; Serve would write three more, in each process that the request passes.
_LOG = LoggingConfig(enable_access_log=False)


def build(args: AppArgs) -> Application:
    """The application that ``args`` describe.

    One deployment per bundle, named model-NAME; one named shelf for those that share replicas; and web before them.
    Raises ConfigError for a name that stands twice.
    """
    twice = sorted(args.bundles.keys() & args.shelf.keys())
    if twice:
        raise ConfigError(f"{twice[0]!r} stands in bundles and in shelf; give each model a name of its own")
    models = {name: _behind(f"model-{name}", Model, args).bind(name, url, args) for name, url in args.bundles.items()}
    shelf = _behind("shelf", Shelf, args).bind(args.shelf, args) if args.shelf else None
    # The Gate inside refuses what is too much, with a problem document; Serve's own refusal is plain text.
    web = serve.deployment(
        name="web",
        max_ongoing_requests=8 * _at_once(args),
        ray_actor_options={"num_cpus": args.cpus_per_replica},
        # A replica that is stopped finishes what it has.
        graceful_shutdown_timeout_s=args.limits.request_seconds,
    )
    return web(Web).bind(models, shelf, args)


def _behind(name: str, kind: type, args: AppArgs) -> Any:
    at_once = _at_once(args)
    return serve.deployment(
        name=name,
        max_ongoing_requests=at_once,
        max_queued_requests=4 * at_once,
        ray_actor_options={
            "num_cpus": args.cpus_per_replica,
            "num_gpus": args.gpus_per_replica,
            **({} if args.gpus_per_replica else {"runtime_env": _with_kept_memory()}),
        },
        # A replica that is stopped finishes what it has.
        graceful_shutdown_timeout_s=args.limits.request_seconds,
    )(kind)


def _with_kept_memory() -> dict[str, Any]:
    """The runtime environment of this program and KEPT_MEMORY: Serve gives its own to deployments that have none."""
    own = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    return {**own, "env_vars": {**own.get("env_vars", {}), **KEPT_MEMORY}}


def _at_once(args: AppArgs) -> int:
    """Requests of one web replica that a model may hold: batches have several images to a request."""
    return max(BATCH_AT_ONCE * args.limits.requests, args.max_batch_size * _BATCHES)


def start(args: AppArgs, *, host: str = "127.0.0.1", port: int = 8000) -> str:
    """Run the application on the Ray that this process is connected to, wait until it answers, return its URL."""
    options = HTTPOptions(host=host, port=port, request_timeout_s=args.limits.request_seconds)
    serve.start(http_options=options, logging_config=_LOG)
    serve.run(build(args), name=APP_NAME, route_prefix="/", logging_config=_LOG)
    return f"http://{host}:{port}"
