"""Search: the sentences that fit an image, or the images that fit a text, among the examples or in an index."""

from __future__ import annotations

import asyncio

from rayzero.config import nearest
from serve.engine import Description, Match, ModelInput
from serve.examples import ExampleStudy
from serve.problems import Problem
from serve.prompts import Prompt, read_text, to_prompt
from serve.schemas import Hit, IndexInfo, RetrieveResponse
from serve.service import Clock, ModelClient, Service
from serve.subjects import Source


async def retrieve(
    service: Service, source: Source, *, text: str | None, model: str | None, index: str | None, count: int
) -> RetrieveResponse:
    """Sentences that fit an image, or images that fit a text, best first: of the examples, or of an ``index``.

    Raises Problem (4xx).
    """
    if text is not None and source:
        raise Problem(422, "invalid-request", "Send either a text or an image, not both.", field="text")
    info = None if index is None else _index(service, index, model)
    client = service.model(model if info is None else info.model)
    about = client.description
    sentence = None if text is None else to_prompt(read_text(text, "text", service.limits), about.template)
    if info is not None:
        hits = await _matches(service, client, info.name, source, sentence, count)
        size = info.images if sentence else info.sentences
    else:
        hits = await (_sentences(service, client, source) if sentence is None else _images(service, client, sentence))
        size = len(hits)
    hits.sort(key=lambda hit: -hit.logit)
    return RetrieveResponse(
        model=about.name,
        checksum=about.checksum,
        query="image" if text is None else "text",
        index_size=size,
        results=[hit.model_copy(update={"rank": rank}) for rank, hit in enumerate(hits[:count], 1)],
    )


def _index(service: Service, name: str, model: str | None) -> IndexInfo:
    info = service.indexes.get(name)
    if info is None:
        detail = nearest(name, list(service.indexes)).capitalize() if service.indexes else "This server has no index."
        raise Problem(404, "unknown-index", detail, field="index")
    if model not in (None, info.model):
        detail = f"Index {name} was built with model {info.model}; leave model out, or name that one."
        raise Problem(422, "invalid-request", detail, field="model")
    return info


async def _matches(
    service: Service, client: ModelClient, index: str, source: Source, sentence: Prompt | None, count: int
) -> list[Hit]:
    about = client.description
    if sentence is not None:
        found = await client.search(index, "", None, sentence=sentence.sentence, count=count)
        assert found is not None, "a search by text needs no image"
        matches = found
    else:
        clock = Clock(about.name)
        subject = await service.subject(source, {}, about, clock)

        async def search(given: ModelInput | None) -> list[Match] | None:
            return await client.search(index, subject.key, given, sentence=None, count=count)

        _, matches = await service.put(about, subject, search, clock)
    return [
        Hit(
            rank=0,
            logit=match.logit,
            probability=match.probability,
            sentence=match.sentence,
            image_id=match.image_id,
            study_ids=list(match.study_ids),
        )
        for match in matches
    ]


async def _sentences(service: Service, client: ModelClient, source: Source) -> list[Hit]:
    index = service.examples.sentences
    if not index:
        raise Problem(409, "no-index", "The examples of this server come without sentences to search.")
    clock = Clock(client.description.name)
    subject = await service.subject(source, {}, client.description, clock)
    answer = (await service.ask(client, subject, list(index), clock=clock)).answer
    return [
        Hit(rank=0, logit=float(logit), probability=float(probability), sentence=sentence, example_ids=ids)
        for (sentence, ids), logit, probability in zip(index.items(), answer.logits, answer.probabilities, strict=True)
    ]


async def _images(service: Service, client: ModelClient, sentence: Prompt) -> list[Hit]:
    studies = _readable(service.examples.studies, client.description)
    if not studies:
        raise Problem(409, "no-index", "This server ships no example images to search that the model reads.")

    async def hit(study: ExampleStudy) -> Hit:
        clock = Clock(client.description.name)
        subject = await service.subject(Source(image_id=study.image_id, patient=True), {}, client.description, clock)
        answer = (await service.ask(client, subject, [sentence.sentence], clock=clock)).answer
        logit, probability = float(answer.logits[0]), float(answer.probabilities[0])
        return Hit(rank=0, logit=logit, probability=probability, example_ids=[study.example.id])

    return list(await asyncio.gather(*map(hit, studies)))


def _readable(studies: list[ExampleStudy], about: Description) -> list[ExampleStudy]:
    return [study for study in studies if study.kind == about.kind]
