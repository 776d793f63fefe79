"""What the deployments do apart from Ray: models that give way, and settings that change."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import threading
import weakref
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayzero.bundle import update_card
from rayzero.config import ConfigError
from serve.cache import LruCache
from serve.deployments import Model, Replaced
from serve.engine import Answer, ModelInput
from serve.live import Live
from serve.settings import AppArgs


def test_a_model_that_makes_room_answers_what_it_was_asked_and_is_gone(bundle_url: str) -> None:
    args = AppArgs(bundles={"m": bundle_url}, threads=1)
    image = ModelInput(np.full((1, 128, 128), 0.3, np.float32))

    async def ask() -> weakref.ref[Model]:
        model = Model("m", bundle_url, args)
        checksum = (await model.describe()).checksum
        asked = asyncio.create_task(model.answer({}, checksum, "img", image, ["There is nodule"], False, None))
        await asyncio.sleep(0)
        # What Serve does, whatever the model is doing, when another is asked for.
        getattr(model, "__del__", lambda: None)()
        answer = await asked
        assert answer is not None
        assert answer.logits.shape == (1,)
        gone = weakref.ref(model)
        del model, asked
        gc.collect()
        await asyncio.sleep(0)
        gc.collect()
        return gone

    gone = asyncio.run(ask())
    gc.collect()
    assert gone() is None
    for one in threading.enumerate():
        if one.name.startswith("model"):
            one.join(30)
            assert not one.is_alive()


def test_an_image_that_cannot_be_encoded_costs_no_other_its_answer(bundle_url: str) -> None:
    async def scenario() -> None:
        model = Model("m", bundle_url, AppArgs(bundles={"m": bundle_url}, threads=1))
        checksum = (await model.describe()).checksum

        def ask(key: str, given: ModelInput | None) -> Coroutine[Any, Any, Answer | None]:
            return model.answer({}, checksum, key, given, ["There is nodule"], False, None)

        good = ModelInput(np.full((1, 128, 128), 0.3, np.float32))
        before = await ask("good", good)
        # A pixel array that the encoder does not take, in one batch with a question about what it knows.
        bad = ask("bad", ModelInput(np.zeros((1, 3, 7, 128), np.float32)))
        lost, after = await asyncio.gather(bad, ask("good", None), return_exceptions=True)
        assert isinstance(lost, Exception)
        assert isinstance(after, Answer)
        assert isinstance(before, Answer)
        assert np.array_equal(after.logits, before.logits)

    asyncio.run(scenario())


def test_a_model_whose_card_alone_was_changed_is_another(bundle_url: str, tmp_path: Path) -> None:
    changed = shutil.copytree(bundle_url, tmp_path / "bundle").as_posix()
    update_card(changed, {"calibration": {"scale": 1.0, "bias": 3.0}})
    args = AppArgs(bundles={"m": changed}, threads=1)
    image = ModelInput(np.full((1, 128, 128), 0.3, np.float32))

    async def scenario() -> None:
        old, new = Model("m", bundle_url, args), Model("m", changed, args)
        before, after = [(await model.describe()).checksum for model in (old, new)]
        with pytest.raises(Replaced):
            await new.answer({}, before, "img", image, ["There is nodule"], False, None)
        assert await new.answer({}, after, "img", image, ["There is nodule"], False, None) is not None

    asyncio.run(scenario())


def test_a_change_of_settings_that_is_wrong_leaves_those_that_hold(caplog: pytest.LogCaptureFixture) -> None:
    live, models = Live(), ["radzero", "rare"]
    wrong: list[dict[str, Any]] = [{"thresholds": {"rare": 1.5}}, {"threshold": {}}, {"thresholds": {"other": 0.2}}]
    with pytest.raises(ConfigError, match="no model 'radzro'; did you mean 'radzero'"):
        live.reload({"thresholds": {"radzro": 0.3}}, models)
    live.reload({"thresholds": {"rare": 0.3}}, models)
    logging.getLogger("ray.serve").addHandler(caplog.handler)
    for one in wrong:
        live.reload(one, models)
        assert live.thresholds == {"rare": 0.3}
    logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert len(caplog.messages) == 3
    live.reload({}, models)
    assert live.thresholds == {}


def test_what_never_fits_a_cache_leaves_the_others_there() -> None:
    cache: LruCache[str] = LruCache(10, len)
    cache.put("a", "four")
    cache.put("b", "far too long")
    assert (cache.get("a"), cache.get("b")) == ("four", None)
    cache.put("a", "still too long")
    assert (cache.get("a"), len(cache)) == (None, 0)
