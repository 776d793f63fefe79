"""The server without Ray: a model in this process behind the real routes."""

from __future__ import annotations

from collections.abc import Sequence

from rayzero.alignment.base import ImageFeatures
from rayzero.index import VectorIndex
from serve.engine import Answer, Description, Engine, Match, ModelInput


class LocalClient:
    """A model in this process that counts how many images and sentences it encoded."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.encoded = 0
        self.sentences_encoded = 0
        self.indexes: dict[str, VectorIndex] = {}
        self.failure: Exception | None = None
        self._images: dict[str, ImageFeatures] = {}

    @property
    def description(self) -> Description:
        return self.engine.description

    async def answer(
        self, key: str, given: ModelInput | None, prompts: Sequence[str], *, maps: bool, top: int | None = None
    ) -> Answer | None:
        if self.failure is not None:
            raise self.failure
        features = self._features(key, given)
        if features is None:
            return None
        answer = self.engine.answer(features, prompts, maps=maps, top=top)
        self.sentences_encoded += answer.encoded
        return answer

    async def search(
        self, index: str, key: str, given: ModelInput | None, *, sentence: str | None, count: int
    ) -> list[Match] | None:
        if sentence is not None:
            return self.engine.search_images(self.indexes[index], sentence, count)
        features = self._features(key, given)
        return None if features is None else self.engine.search_sentences(self.indexes[index], features, count)

    def _features(self, key: str, given: ModelInput | None) -> ImageFeatures | None:
        if key not in self._images and given is not None:
            self.encoded += 1
            self._images[key] = self.engine.encode([given])[0]
        return self._images.get(key)

    async def check(self) -> None:
        self.engine.check()
