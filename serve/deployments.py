"""The two Ray Serve deployments: the web side, and behind it one model each; a request makes a single hop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from rayzero.alignment.base import ImageFeatures
from serve.api import create_api
from serve.cache import LruCache
from serve.engine import Answer, Description, Engine
from serve.examples import ExampleSet
from serve.problems import Problem
from serve.service import Service
from serve.settings import AppArgs

Float = np.ndarray[Any, np.dtype[np.float32]]
T = TypeVar("T")

TOKEN_VARIABLE = "RAYZERO_API_TOKEN"


class Model:
    """One bundle. Images are encoded in batches; features of images and prompts are kept."""

    def __init__(self, name: str, url: str, args: AppArgs) -> None:
        torch.set_num_threads(args.threads)
        self._engine = Engine.load(name, url, "cuda" if args.gpus_per_replica else "cpu", args.cached_prompts)
        self._images: LruCache[ImageFeatures] = LruCache(args.cached_images)
        # One thread: torch spreads one forward pass over the cores, and the event loop stays free.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

        async def encode(pixels: list[Float]) -> list[ImageFeatures]:
            return await self._run(partial(self._engine.encode, pixels))

        batched = serve.batch(max_batch_size=args.max_batch_size, batch_wait_timeout_s=args.batch_wait_s)
        self._encode: Callable[[Float], Awaitable[ImageFeatures]] = batched(encode)

    async def describe(self) -> Description:
        """What the model is."""
        return self._engine.description

    async def check(self) -> None:
        """One real inference."""
        await self._run(self._engine.check)

    async def answer(self, image_id: str, pixels: Float | None, prompts: Sequence[str], maps: bool) -> Answer | None:
        """Scores of the image; None when ``pixels`` is not given and its features are not kept here."""
        features = self._images.get(image_id)
        if features is None:
            if pixels is None:
                return None
            features = await self._encode(pixels)
            self._images.put(image_id, features)
        return await self._run(partial(self._engine.answer, features, prompts, maps=maps))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class HandleClient:
    """A model behind a Serve handle."""

    def __init__(self, handle: DeploymentHandle[Any], description: Description) -> None:
        self._handle = handle
        self.description = description

    async def answer(self, image_id: str, pixels: Float | None, prompts: Sequence[str], *, maps: bool) -> Answer | None:
        """See ``ModelClient.answer``. Raises Problem (503) when the model is overloaded or its replica died."""
        try:
            answer: Answer | None = await self._handle.answer.remote(image_id, pixels, prompts, maps)
        except (RayServeException, RayActorError):
            # Said here, before Serve turns it into plain text of its own.
            detail = "The model is overloaded or starting; try again in a few seconds."
            raise Problem(503, "model-unavailable", detail, retry_after_s=2) from None
        return answer

    async def check(self) -> None:
        """One real inference on one replica."""
        await self._handle.check.remote()


@serve.ingress()
class Web:
    """HTTP in front of the models. Files are decoded here, so that a hostile one never reaches a model."""

    def __init__(self, models: dict[str, DeploymentHandle[Any]], args: AppArgs) -> None:
        self._handles = models
        self._args = args

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once the models are up: what they are decides what the routes answer."""
        clients = [HandleClient(handle, await handle.describe.remote()) for handle in self._handles.values()]
        service = Service(clients, ExampleSet.load(self._args.examples), self._args.limits)
        return create_api(service, token=os.environ.get(TOKEN_VARIABLE) or None)
