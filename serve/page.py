"""A page before the server, as a second Serve application: ``page`` of serve/config.yaml.

The page is named by import path and reaches the server over HTTP like any other client: this package does not know
it. One replica, for the files and events of a reader's session live in the process that took them.
"""

# No ``from __future__ import annotations`` here: see serve/app.py.

from importlib import import_module
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from rayzero.config import ConfigError


class PageArgs(BaseModel):
    """Arguments of ``serve.page:build``, under ``args:`` of a Serve config file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mount: str = Field(
        default="ui.app:mount", description="module:function that takes (application, server, path) and returns it"
    )
    server: str = Field(default="http://127.0.0.1:8000", description="Address of the server that the page asks")


def build(args: PageArgs) -> Application:
    """The application that serves the page. Raises ConfigError for a page that does not exist."""
    _find(args.mount)
    page = serve.deployment(name="page", num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
    return page(Page).bind(args)


@serve.ingress()
class Page:
    """The page's own ASGI application."""

    def __init__(self, args: PageArgs) -> None:
        self._args = args

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve at the start of the replica."""
        app: ASGIApp = _find(self._args.mount)(FastAPI(), self._args.server, "/")
        return app


def _find(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"mount: {path!r} is no module:function that can be imported ({error})") from None
