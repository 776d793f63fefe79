"""The Serve application: ``serve run serve/config.yaml``, or ``start`` from a program."""

# No ``from __future__ import annotations`` here: Serve turns a config file's args into AppArgs by the annotation of
# ``build``, and would find a string in its place.

from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions

from serve.deployments import Model, Web
from serve.settings import AppArgs

APP_NAME = "rayzero"

# Batches of one model that may be encoded at once; a second one waits filled while the first runs.
_CONCURRENT_BATCHES = 2


def build(args: AppArgs) -> Application:
    """The application that ``args`` describe: one deployment per model, named model-NAME, and Web before them."""
    at_once = max(args.limits.requests, args.max_batch_size * _CONCURRENT_BATCHES)
    models = {
        name: serve.deployment(
            name=f"model-{name}",
            max_ongoing_requests=at_once,
            max_queued_requests=4 * at_once,
            ray_actor_options={"num_cpus": args.cpus_per_replica, "num_gpus": args.gpus_per_replica},
        )(Model).bind(name, url, args)
        for name, url in args.bundles.items()
    }
    # The Gate inside refuses what is too much, with a problem document; Serve's own refusal is plain text.
    web = serve.deployment(
        name="web",
        max_ongoing_requests=8 * at_once,
        ray_actor_options={"num_cpus": args.cpus_per_replica},
    )
    return web(Web).bind(models, args)


def start(args: AppArgs, *, host: str = "127.0.0.1", port: int = 8000) -> str:
    """Run the application on the Ray that this process is connected to, wait until it answers, return its URL."""
    serve.start(http_options=HTTPOptions(host=host, port=port, request_timeout_s=60))
    serve.run(build(args), name=APP_NAME, route_prefix="/")
    return f"http://{host}:{port}"
