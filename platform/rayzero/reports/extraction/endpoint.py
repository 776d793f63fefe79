"""Sentences from any server that speaks the OpenAI protocol: vLLM, SGLang, llama.cpp, Ollama, or a hosted one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from rayzero.reports.extraction.answers import AnswerError, answer_schema, messages, read_answer
from rayzero.reports.extraction.base import ExtractionError, Outcome, Usage
from rayzero.reports.extraction.styles import Style
from rayzero.studies.study import Report

if TYPE_CHECKING:
    import openai


class EndpointSettings(BaseModel):
    """Where the model is and how it is asked.

    ``attempts`` bounds the answers asked for one report, each with a seed of its own; ``retries`` bounds, for every
    one of them, the requests repeated with growing waits after 408, 409, 429, 5xx, a timeout or a lost connection.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str
    model: str
    api_key: str = Field(default="none", repr=False)
    temperature: float = Field(default=0.0, ge=0.0)
    max_tokens: int = Field(default=1024, ge=1)
    attempts: int = Field(default=3, ge=1)
    retries: int = Field(default=5, ge=0)
    timeout: float = Field(default=120.0, gt=0)
    concurrency: int = Field(default=32, ge=1)


class Endpoint:
    """A strategy that asks a chat endpoint, ``concurrency`` reports at a time."""

    caches = True

    def __init__(self, settings: EndpointSettings) -> None:
        try:
            import openai
        except ImportError:
            raise ExtractionError("the endpoint strategy needs openai: pip install 'rayzero[extraction]'") from None
        self._settings = settings
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=settings.api_key,
            max_retries=settings.retries,
            timeout=settings.timeout,
        )

    @property
    def identity(self) -> Mapping[str, object]:
        """The model and its sampling; not the address, at which any server may offer the same model."""
        chosen = ("model", "temperature", "max_tokens")
        return {"strategy": "model", **{name: getattr(self._settings, name) for name in chosen}}

    def extract(self, reports: Mapping[str, Report], style: Style) -> Iterator[tuple[str, Outcome]]:
        """See ``Strategy.extract``. Raises ExtractionError for a refused key, an unknown model or path."""
        waiting = iter(reports.items())
        running: dict[Future[Outcome], str] = {}
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            try:
                # Two for each thread, so that none idles while a finished one is handed on.
                for key, report in itertools.islice(waiting, 2 * self._settings.concurrency):
                    running[pool.submit(self._ask, report, style)] = key
                while running:
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        key = running.pop(done)
                        outcome = done.result()
                        for later, report in itertools.islice(waiting, 1):
                            running[pool.submit(self._ask, report, style)] = later
                        yield key, outcome
            finally:
                for future in running:
                    future.cancel()

    def _ask(self, report: Report, style: Style) -> Outcome:
        """One report to its outcome: a new answer is asked for while the last one was refused."""
        usage, detail = Usage(), ""
        for attempt in range(self._settings.attempts):
            try:
                answer, cost = self._complete(report, style, seed=attempt)
            except self._openai.APIError as error:
                return self._failure(error, usage)
            usage = Usage(
                prompt_tokens=usage.prompt_tokens + cost.prompt_tokens,
                completion_tokens=usage.completion_tokens + cost.completion_tokens,
                retries=usage.retries + cost.retries + (attempt > 0),
            )
            try:
                return Outcome(sentences=read_answer(answer, style), usage=usage)
            except AnswerError as error:
                detail = str(error)
        return Outcome(usage=usage, failure="answer refused", detail=_short(detail))

    def _complete(self, report: Report, style: Style, *, seed: int) -> tuple[str, Usage]:
        """The text of one completion and what it cost."""
        schema: Any = {"name": f"{style.name}_statements", "schema": answer_schema(style), "strict": True}
        settings = self._settings
        chat: list[Any] = list(messages(report, style))
        raw = self._client.chat.completions.with_raw_response.create(
            model=settings.model,
            messages=chat,
            # A first refused answer says that the most likely one will not do.
            temperature=settings.temperature if seed == 0 else max(settings.temperature, 0.7),
            max_tokens=settings.max_tokens,
            seed=seed,
            response_format={"type": "json_schema", "json_schema": schema},
        )
        completion = raw.parse()
        used = completion.usage
        text = completion.choices[0].message.content if completion.choices else None
        return text or "", Usage(
            prompt_tokens=used.prompt_tokens if used else 0,
            completion_tokens=used.completion_tokens if used else 0,
            retries=raw.retries_taken,
        )

    def _failure(self, error: openai.APIError, usage: Usage) -> Outcome:
        """The outcome of a request that the client gave up. Raises ExtractionError where every other would end so."""
        settings = self._settings
        # The client repeats what may pass: a timeout is a lost connection, and 4xx but a few are final.
        status = getattr(error, "status_code", None)
        if status is None or status in (408, 409, 429) or status >= 500:
            usage = replace(usage, retries=usage.retries + settings.retries)
        if isinstance(error, self._openai.APITimeoutError):
            return Outcome(usage=usage, failure="timeout", detail=f"no answer in {settings.timeout:g} s")
        if status is None:
            return Outcome(usage=usage, failure="connection", detail=_short(str(error.__cause__ or error)))
        if status in (401, 403, 404):
            raise ExtractionError(
                f"{settings.base_url} refuses model {settings.model!r} (HTTP {status}: {_short(error.message)}); "
                "check the address, the model's name and the key"
            ) from error
        return Outcome(usage=usage, failure=f"HTTP {status}", detail=_short(error.message))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:199]}…"
