"""The Ray Serve deployments: the web side, and behind it the models; a request makes a single hop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from rayzero.alignment.base import ImageFeatures
from rayzero.bundle import BundleError, fingerprint, read_bundle_card
from rayzero.config import ConfigError, nearest
from rayzero.index import load_index
from serve.api import create_api
from serve.cache import LruCache
from serve.engine import Answer, Description, Engine, Match, ModelInput, describe
from serve.examples import ExampleSet
from serve.live import VOCABULARY, Live
from serve.meters import count_cache, observe_batch, observe_stage
from serve.problems import Problem
from serve.schemas import IndexInfo
from serve.service import Service
from serve.settings import AppArgs
from serve.tracing import carried, record_stage, stage_span
from serve.tracing import set_up as set_up_tracing

T = TypeVar("T")

TOKEN_VARIABLE = "RAYZERO_API_TOKEN"


class Replaced(Exception):
    """The bundle that a question was meant for is not the one that is here."""


@dataclass(frozen=True)
class _Done(Generic[T]):
    """What the model's thread made, and when, in nanoseconds since the epoch."""

    value: T
    began: int
    ended: int


class Model:
    """One bundle. Subjects are encoded in batches; features of subjects and prompts are kept."""

    def __init__(self, name: str, url: str, args: AppArgs) -> None:
        set_up_tracing(args.tracing)
        torch.set_num_threads(args.threads)
        self._engine = Engine.load(name, url, "cuda" if args.gpus_per_replica else "cpu", args.cached_prompts)
        self._name = name
        checksum = self._engine.description.checksum
        self._indexes = {
            key: load_index(index.url, checksum) for key, index in args.indexes.items() if index.model == name
        }
        self._images: LruCache[ImageFeatures] = LruCache(args.cached_images)
        # One thread: torch spreads one forward pass over the cores, and the event loop stays free. It ends when the
        # model is collected, not in a __del__: Serve calls that on a model that makes room, which may be at work.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        vocabulary = self._engine.description.card.get(VOCABULARY)
        if vocabulary:
            self._engine.warm([self._engine.description.template.replace("{}", finding) for finding in vocabulary])

        async def encode(given: list[ModelInput]) -> list[_Done[ImageFeatures]]:
            observe_batch(name, len(given))
            done = await self._run(partial(self._engine.encode, given))
            observe_stage("encode", name, (done.ended - done.began) / 1e9)
            # Each request has the pass in its own trace: the task of a batch stands in none of them.
            return [_Done(features, done.began, done.ended) for features in done.value]

        batched = serve.batch(max_batch_size=args.max_batch_size, batch_wait_timeout_s=args.batch_wait_s)
        self._encode: Callable[[ModelInput], Awaitable[_Done[ImageFeatures]]] = batched(encode)

    async def describe(self) -> Description:
        """What the model is."""
        return self._engine.description

    async def check(self) -> None:
        """One real inference."""
        await self._run(self._engine.check)

    async def answer(
        self,
        caller: Mapping[str, str],
        checksum: str,
        key: str,
        given: ModelInput | None,
        prompts: Sequence[str],
        maps: bool,
        top: int | None,
    ) -> Answer | None:
        """See ``ModelClient.answer``; ``caller`` carries the trace. Raises Replaced when the checksum is another."""
        with stage_span("answer", self._name, caller):
            self._check_bundle(checksum)
            features = await self._features(key, given)
            if features is None:
                return None
            before = self._engine.prompt_misses
            answer = await self._timed("score", partial(self._engine.answer, features, prompts, maps=maps, top=top))
            missed = min(len(prompts), self._engine.prompt_misses - before)
            count_cache("prompt", self._name, hits=len(prompts) - missed, misses=missed)
            return answer

    async def index_infos(self) -> list[IndexInfo]:
        """The indexes that this model can search."""
        return [
            IndexInfo(name=key, model=self._name, sentences=len(index.sentences), images=len(index.images))
            for key, index in self._indexes.items()
        ]

    async def search(
        self,
        caller: Mapping[str, str],
        checksum: str,
        index: str,
        key: str,
        given: ModelInput | None,
        sentence: str | None,
        count: int,
    ) -> list[Match] | None:
        """See ``ModelClient.search``. Raises Replaced likewise."""
        with stage_span("answer", self._name, caller):
            self._check_bundle(checksum)
            searched = self._indexes.get(index)
            if searched is None:
                raise Replaced
            if sentence is not None:
                return await self._timed("search", partial(self._engine.search_images, searched, sentence, count))
            features = await self._features(key, given)
            if features is None:
                return None
            return await self._timed("search", partial(self._engine.search_sentences, searched, features, count))

    def _check_bundle(self, checksum: str) -> None:
        # While one bundle takes the place of another, the web side may have prepared the image for the other.
        if checksum != self._engine.description.checksum:
            raise Replaced

    async def _features(self, key: str, given: ModelInput | None) -> ImageFeatures | None:
        features = self._images.get(key)
        if features is None and given is None:
            return None
        count_cache("image", self._name, hits=features is not None, misses=features is None)
        if features is None:
            assert given is not None
            asked = time.time_ns()
            done = await self._encode(given)
            self._waited(asked, done.began)
            record_stage("encode", self._name, done.began, done.ended)
            features = done.value
            self._images.put(key, features)
        return features

    async def _timed(self, stage: str, work: Callable[[], T]) -> T:
        asked = time.time_ns()
        done = await self._run(work)
        self._waited(asked, done.began)
        record_stage(stage, self._name, done.began, done.ended)
        observe_stage(stage, self._name, (done.ended - done.began) / 1e9)
        return done.value

    def _waited(self, asked: int, began: int) -> None:
        """A request waited for others: for its batch to fill, for the model's thread, or for both."""
        record_stage("queue", self._name, asked, began)
        observe_stage("queue", self._name, (began - asked) / 1e9)

    async def _run(self, work: Callable[[], T]) -> _Done[T]:
        def timed() -> _Done[T]:
            began = time.time_ns()
            return _Done(work(), began, time.time_ns())

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)


class Shelf:
    """Many bundles that are asked rarely: a replica holds some of them at a time, those asked last."""

    def __init__(self, urls: dict[str, str], args: AppArgs) -> None:
        set_up_tracing(args.tracing)

        async def load(name: str) -> Model:
            return await asyncio.to_thread(Model, name, urls[name], args)

        # Serve finds the replica that holds a model already by what this wrapper says it loaded.
        self._load = serve.multiplexed(max_num_models_per_replica=args.shelf_models)(load)

    async def describe(self) -> Description:
        """What the model that is asked for is."""
        return await (await self._model()).describe()

    async def answer(self, caller: Mapping[str, str], *question: Any) -> Answer | None:
        """See ``Model.answer``. Getting the model, which may have to be loaded, has a span of its own."""
        with stage_span("load", serve.get_multiplexed_model_id(), caller):
            model = await self._model()
        return await model.answer(caller, *question)

    async def _model(self) -> Model:
        model: Model = await self._load(serve.get_multiplexed_model_id())
        return model


class HandleClient:
    """A model behind a Serve handle; ``resident`` unless it shares replicas that load it when it is asked.

    ``description`` stays what it is. Where the handle leads to another bundle, the question is refused and ``renew``
    gets the client of that one.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        description: Description,
        renew: Callable[[HandleClient], None],
        *,
        seconds: float,
        resident: bool = True,
    ) -> None:
        self._handle = handle
        self._renew = renew
        self._seconds = seconds
        self._resident = resident
        self.description = description

    async def answer(
        self, key: str, given: ModelInput | None, prompts: Sequence[str], *, maps: bool, top: int | None = None
    ) -> Answer | None:
        """See ``ModelClient.answer``. Raises Problem (503) when the model is overloaded, replaced or away."""
        found: Answer | None = await self._ask("answer", key, given, prompts, maps, top)
        return found

    async def search(
        self, index: str, key: str, given: ModelInput | None, *, sentence: str | None, count: int
    ) -> list[Match] | None:
        """See ``ModelClient.search``. Raises Problem (503) likewise."""
        found: list[Match] | None = await self._ask("search", index, key, given, sentence, count)
        return found

    async def check(self) -> None:
        """One real inference on one replica; nothing for a model of the shelf, which would drop another for it."""
        if not self._resident:
            return
        try:
            await asyncio.wait_for(self._handle.check.remote(), self._seconds)
        except RayTaskError:
            raise
        except (RayServeException, RayError, TimeoutError):
            raise _away("The model is overloaded or starting; try again in a few seconds.") from None

    async def _ask(self, method: str, *question: Any) -> Any:
        try:
            call = getattr(self._handle, method).remote(carried(), self.description.checksum, *question)
            return await asyncio.wait_for(call, self._seconds)
        except RayTaskError as error:
            if isinstance(error.cause, BundleError):
                raise _away("The bundle of this model cannot be loaded; its operator has to mend it.") from None
            if not isinstance(error.cause, Replaced):
                raise
        except (RayServeException, RayError, TimeoutError):
            # Whatever was lost with a replica or its node. Said here, before Serve turns it into text of its own.
            raise _away("The model is overloaded or starting; try again in a few seconds.") from None
        try:
            found = await asyncio.wait_for(self._handle.describe.remote(), self._seconds)
        except RayTaskError:
            raise
        except (RayServeException, RayError, TimeoutError):
            raise _away("The model is starting; try again in a few seconds.") from None
        self._renew(HandleClient(self._handle, found, self._renew, seconds=self._seconds, resident=self._resident))
        raise _away("The model was replaced while it was asked; ask again.")


def _away(detail: str) -> Problem:
    return Problem(503, "model-unavailable", detail, retry_after_s=2)


@serve.ingress()
class Web:
    """HTTP in front of the models. Files are read here, in confined processes: a hostile one never reaches a model."""

    def __init__(self, models: dict[str, DeploymentHandle[Any]], shelf: DeploymentHandle[Any] | None, args: AppArgs):
        self._handles = models
        self._shelf = shelf
        self._args = args
        self._live = Live()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve with ``user_config``, at the start and whenever it changes. Raises as ``Live.reload``."""
        self._live.reload(user_config, [*self._handles, *self._args.shelf])

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once the models are up: what they are decides what the routes answer."""
        args = self._args
        set_up_tracing(args.tracing)
        seconds = args.limits.answer_seconds

        def renew(client: HandleClient) -> None:
            service.renew(client)

        clients = [
            HandleClient(handle, await handle.describe.remote(), renew, seconds=seconds)
            for handle in self._handles.values()
        ]
        if self._shelf is not None:
            clients += [
                HandleClient(
                    self._shelf.options(multiplexed_model_id=name),
                    await asyncio.to_thread(_read, name, url),
                    renew,
                    seconds=seconds,
                    resident=False,
                )
                for name, url in args.shelf.items()
            ]
        indexes = [info for handle in self._handles.values() for info in await handle.index_infos.remote()]
        lost = sorted(args.indexes.keys() - {info.name for info in indexes})
        if lost:
            known = nearest(args.indexes[lost[0]].model, list(args.bundles))
            raise ConfigError(f"index {lost[0]}: no model {args.indexes[lost[0]].model!r} in bundles; {known}")
        examples = ExampleSet.load(args.examples)
        service = Service(clients, examples, args.limits, live=self._live, indexes=indexes, pacs=args.pacs)
        await asyncio.to_thread(service.images.start)
        return create_api(service, token=os.environ.get(TOKEN_VARIABLE) or None)


def _read(name: str, url: str) -> Description:
    config, card = read_bundle_card(url)
    return describe(name, config, card, fingerprint(url))
