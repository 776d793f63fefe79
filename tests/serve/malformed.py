"""Requests that are wrong in many ways: files for the two kinds of model, and whatever the OpenAPI document allows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serve.batches import NDJSON
from tests.studies.mutations import mutants
from tests.studies.scans import chest, nifti_bytes, series, zipped

_SENT = {"method", "url", "params", "headers", "cookies", "data", "files", "json", "content"}


def damaged_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` files with the name of the model that is to read each: films and CT in turn."""
    rng = np.random.default_rng(seed)
    films = mutants((count + 1) // 2, seed)
    slices = series(chest(), StudyInstanceUID="1.2.8", FrameOfReferenceUID="1.2.9")
    volumes = (nifti_bytes(chest()), nifti_bytes(chest(), zipped=False), zipped(slices))
    for number in range(count):
        if number % 2 == 0:
            yield "films", next(films)
        else:
            yield "ct", _damaged(volumes[number // 2 % 3], rng)


def send_what_the_document_allows(
    document: dict[str, Any], send: Callable[[dict[str, Any]], None], *, count: int, url: str
) -> None:
    """``send`` the arguments of ``count`` requests to ``httpx``, made from an OpenAPI document: right and wrong ones.

    The same for the same document.
    """
    operations = [result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations()]
    assert len(operations) >= 12
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    cases = st.one_of([one.as_strategy(generation_mode=mode) for one in operations for mode in modes])

    @settings(
        max_examples=count,
        # A server that is slow today answers no less rightly.
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def each(case: schemathesis.Case) -> None:
        arguments = case.as_transport_kwargs(base_url=url)
        sent = {key: arguments[key] for key in arguments if key in _SENT}
        if sent.get("files"):
            sent["files"] = [(name, _part(value)) for name, value in sent["files"]]
        send(sent)

    each()


def status_of(answer: httpx.Response) -> int:
    """The status of an answer, or of the image that a batch of one tells of."""
    return max([answer.status_code, *(one["problem"]["status"] for one in _lines(answer) if "problem" in one)])


def is_sound(answer: httpx.Response) -> bool:
    """Whether an answer is what was asked for, or a problem document of this server."""
    kind = answer.headers.get("content-type", "")
    if answer.status_code < 400:
        lines = _lines(answer)
        whole = bool(lines) and "done" in lines[-1]
        return kind != NDJSON or (whole and all(_is_told(one.get("problem")) for one in lines))
    try:
        return is_problem(kind, answer.json())
    except ValueError:
        return False


def is_problem(media_type: str, document: dict[str, object]) -> bool:
    """Whether an answer is a problem document of this server."""
    return media_type == "application/problem+json" and _is_told(document)


def _is_told(problem: dict[str, object] | None) -> bool:
    if problem is None:
        return True
    return str(problem.get("type", "")).startswith("urn:rayzero:problem:") and bool(problem.get("detail"))


def _lines(answer: httpx.Response) -> list[dict[str, Any]]:
    if answer.headers.get("content-type") != NDJSON:
        return []
    try:
        return [json.loads(line) for line in answer.text.splitlines()]
    except ValueError:
        return []


def _part(value: Any) -> Any:
    """Part of a form as ``httpx`` takes it: a number where a file should be goes out as its text."""
    if isinstance(value, tuple):
        name, content, *more = value
        return name, _part(content), *more
    return value if isinstance(value, (str, bytes)) else json.dumps(value)


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    if rng.random() < 0.3:
        return bytes(changed[: int(rng.integers(1, len(changed)))])
    # Mostly in the header, where the lies are.
    end = 600 if rng.random() < 0.6 else len(changed)
    for place in rng.integers(0, min(end, len(changed)), int(rng.integers(1, 20))):
        changed[place] = rng.integers(0, 256)
    return bytes(changed)
