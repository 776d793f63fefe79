"""Many images in one request, answered line by line as they are done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

from serve.pacs import Address, to_address
from serve.problems import Problem, failure, problem_document
from serve.schemas import BatchLine, ProblemDocument
from serve.service import Question, Service
from serve.subjects import Source

NDJSON = "application/x-ndjson"

# Images of one batch that are worked on at once: enough to fill the model's batches while others are read.
AT_ONCE = 16


def read_addresses(pacs: str | None, fields: Sequence[str]) -> list[Address]:
    """Studies in a PACS, as ``studies`` of a form has them. Raises Problem (422)."""
    if pacs is None:
        if fields:
            raise Problem(422, "invalid-request", "Name the pacs that has the studies.", field="pacs")
        return []
    if not fields:
        raise Problem(422, "invalid-request", "Name the studies by their StudyInstanceUID.", field="studies")
    return [
        to_address(pacs, text, f"studies[{index}]") for index, text in enumerate(read_texts(fields, field="studies"))
    ]


def read_texts(fields: Sequence[str], *, field: str) -> list[str]:
    """Texts in repeated form fields, or in one that holds a JSON list. Raises Problem (422)."""
    if len(fields) != 1 or not fields[0].lstrip().startswith("["):
        return list(fields)
    try:
        values = json.loads(fields[0])
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Problem(422, "invalid-request", f"{field} must be a list of texts.", field=field)
    return values


def answer_batch(service: Service, sources: Sequence[Source], question: Question) -> AsyncIterator[bytes]:
    """The lines of the answer. Raises Problem (4xx), before the first line, for what no image can be asked."""
    if not 1 <= len(sources) <= service.limits.batch_files:
        detail = f"{len(sources)} images were sent; a batch takes 1 to {service.limits.batch_files}."
        raise Problem(422, "too-many-files" if sources else "invalid-request", detail, field="files")
    service.prompts(question, service.model(question.model).description)
    for name in {source.address.pacs for source in sources if source.address}:
        service.archive(name)
    return _lines(service, sources, question)


async def _lines(service: Service, sources: Sequence[Source], question: Question) -> AsyncIterator[bytes]:
    sent, fetched = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(_fetched_at_once(service, question))

    async def one(index: int, source: Source) -> BatchLine:
        async with sent if source.address is None else fetched:
            try:
                return BatchLine(index=index, answer=await service.query(source, question))
            except Problem as problem:
                refused = problem
            except Exception as error:
                refused = failure(error)
            return BatchLine(index=index, problem=ProblemDocument.model_validate(problem_document(refused)))

    tasks = [asyncio.create_task(one(index, source)) for index, source in enumerate(sources)]
    failed = 0
    try:
        for done in asyncio.as_completed(tasks):
            line = await done
            failed += line.problem is not None
            yield _encode(line)
    finally:
        # The client may have gone: nobody waits for the rest.
        for task in tasks:
            task.cancel()
    yield _encode(BatchLine(done=len(sources) - failed, failed=failed))


def _fetched_at_once(service: Service, question: Question) -> int:
    """Images of one batch that are fetched at once: what they hold leaves as much again to other requests."""
    limits = service.limits
    volume = service.model(question.model).description.kind == "volume"
    most = limits.volume_bytes if volume else limits.file_bytes
    return max(1, min(AT_ONCE, limits.held_bytes // (2 * most)))


def _encode(line: BatchLine) -> bytes:
    # Fields that a line does not have are left out; those of an answer stay, null or not, as in a query.
    present = {name for name in BatchLine.model_fields if getattr(line, name) is not None}
    return line.model_dump_json(include=present).encode() + b"\n"
