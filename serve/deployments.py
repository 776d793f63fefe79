"""The Ray Serve deployments: the web side, and behind it the models; a request makes a single hop."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

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
from serve.passes import Lanes, Passes, apart
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
class _Question:
    """What to do with the features of a subject, and the subject itself where they are not here yet."""

    key: str
    features: ImageFeatures | None
    given: ModelInput | None
    look: Callable[[ImageFeatures], Any]


@dataclass(frozen=True)
class _Answered:
    """What came of it and when: the pass of its batch through the encoder, and the look after."""

    value: Any
    encode: tuple[int, int]
    look: tuple[int, int]


class Model:
    """One bundle. Subjects are encoded in batches; features of subjects and prompts are kept."""

    def __init__(self, name: str, url: str, args: AppArgs, lanes: Lanes | None = None) -> None:
        set_up_tracing(args.tracing)
        torch.set_num_threads(args.threads)
        self._engine = apart(partial(_warm_engine, name, url, args))
        self._name = name
        # A card that was written anew leaves an index as good as it was.
        self._indexes = {
            key: load_index(index.url, fingerprint(url)) for key, index in args.indexes.items() if index.model == name
        }
        self._images: LruCache[ImageFeatures] = LruCache(args.cached_images)
        self._passes = Passes(self._work, lanes or _lanes(args))

    async def describe(self) -> Description:
        """What the model is."""
        return self._engine.description

    async def check(self) -> None:
        """One real inference."""
        await self._passes.run(self._engine.check)

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
            return await self._look("score", key, given, partial(self._answer, prompts=prompts, maps=maps, top=top))

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
            if sentence is None:
                return await self._look(
                    "search", key, given, partial(self._engine.search_sentences, searched, count=count)
                )
            asked = time.time_ns()
            done = await self._passes.run(partial(self._engine.search_images, searched, sentence, count))
            self._record("queue", (asked, done.began))
            self._record("search", (done.began, done.ended))
            return done.value

    def _check_bundle(self, checksum: str) -> None:
        # While one bundle takes the place of another, the web side may have prepared the image for the other.
        if checksum != self._engine.description.checksum:
            raise Replaced

    async def _look(
        self, stage: str, key: str, given: ModelInput | None, look: Callable[[ImageFeatures], T]
    ) -> T | None:
        """What ``look`` makes of a subject's features; None where they are not here and it was not given."""
        features = self._images.get(key)
        if features is None and given is None:
            return None
        count_cache("image", self._name, hits=features is not None, misses=features is None)
        asked = time.time_ns()
        done = await self._passes.ask(_Question(key, features, given, look))
        if features is None:
            self._record("queue", (asked, done.encode[0]), (done.encode[1], done.look[0]))
            # Each request has the pass in its own trace; the figures have it once, from the thread.
            record_stage("encode", self._name, *done.encode)
        else:
            # It waits for what others have encoded, too.
            self._record("queue", (asked, done.look[0]))
        self._record(stage, done.look)
        value: T = done.value
        return value

    def _work(self, batch: Sequence[_Question]) -> Iterator[_Answered | Exception]:
        """One pass of the encoder over what is new in a batch, then its questions one by one. Runs in a lane."""
        began = time.time_ns()
        here: dict[str, ImageFeatures] = {}
        new: dict[str, ModelInput] = {}
        for one in batch:
            # Another pass may have encoded it since it was asked about.
            features = self._images.get(one.key) if one.features is None else one.features
            if features is not None:
                here[one.key] = features
            elif one.given is not None:
                new[one.key] = one.given
        lost: Exception | None = None
        if new:
            observe_batch(self._name, len(new))
            try:
                here.update(zip(new, self._engine.encode(list(new.values())), strict=True))
            except Exception as error:
                lost = error
            else:
                for key in new:
                    self._images.put(key, here[key])
        ended = time.time_ns()
        if new:
            observe_stage("encode", self._name, (ended - began) / 1e9)
        for one in batch:
            if lost is not None and one.key not in here:
                yield lost
                continue
            looked = time.time_ns()
            try:
                value = one.look(here[one.key])
            except Exception as error:
                yield error
            else:
                yield _Answered(value, (began, ended), (looked, time.time_ns()))

    def _answer(self, features: ImageFeatures, prompts: Sequence[str], maps: bool, top: int | None) -> Answer:
        answer = self._engine.answer(features, prompts, maps=maps, top=top)
        missed = min(len(prompts), answer.encoded)
        count_cache("prompt", self._name, hits=len(prompts) - missed, misses=missed)
        return answer

    def _record(self, stage: str, *parts: tuple[int, int]) -> None:
        """A stage of one request, from when to when, in its trace and, as one time, in the figures.

        A request "queues" for the passes before, and in its own for those of its batch that are looked at before it.
        """
        for began, ended in parts:
            record_stage(stage, self._name, began, ended)
        observe_stage(stage, self._name, sum(ended - began for began, ended in parts) / 1e9)


def _warm_engine(name: str, url: str, args: AppArgs) -> Engine:
    """The engine of a bundle that knows the findings of its vocabulary."""
    engine = Engine.load(name, url, "cuda" if args.gpus_per_replica else "cpu", args.cached_prompts)
    vocabulary = engine.description.card.get(VOCABULARY)
    if vocabulary:
        engine.warm([engine.description.template.replace("{}", finding) for finding in vocabulary])
    return engine


def _lanes(args: AppArgs) -> Lanes:
    return Lanes(args.threads, args.max_batch_size, side_by_side=not args.gpus_per_replica)


class Shelf:
    """Many bundles that are asked rarely: a replica holds some of them at a time, those asked last."""

    def __init__(self, urls: dict[str, str], args: AppArgs) -> None:
        set_up_tracing(args.tracing)
        lanes = _lanes(args)

        async def load(name: str) -> Model:
            # A model that made room is a cycle, and its weights would stay until some later collection.
            gc.collect()
            return await asyncio.to_thread(Model, name, urls[name], args, lanes)

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
        # An error of the model is raised as it is or, by Ray's own transport, as a RayTaskError of its class, too.
        except BundleError:
            raise _away("The bundle of this model cannot be loaded; its operator has to mend it.") from None
        except Replaced:
            pass
        except RayTaskError:
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
    config, card, checksum = read_bundle_card(url)
    return describe(name, config, card, checksum)
