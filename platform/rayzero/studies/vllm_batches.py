"""Sentences from a language model on one's own GPUs: all reports in one offline run of Ray Data and vLLM.

Ray Data feeds as many vLLM engines as asked for, on any nodes of the cluster, and keeps each one's batch full. It is
the cheapest way to extract a whole corpus once; for a server that is running anyway use the endpoint strategy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field

from rayzero.cluster import join
from rayzero.reports.extraction.answers import AnswerError, answer_schema, messages, read_answer
from rayzero.reports.extraction.base import ExtractionError, Outcome, Usage
from rayzero.reports.extraction.styles import Style
from rayzero.studies.study import Report


class VllmSettings(BaseModel):
    """The model (a hub id or a folder that every node reaches), how it samples, and how it is spread over GPUs.

    ``attempts`` bounds the passes: what the first refuses or loses goes through a further one with another seed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    temperature: float = Field(default=0.0, ge=0.0)
    max_tokens: int = Field(default=1024, ge=1)
    max_model_len: int = Field(default=8192, ge=1024)
    attempts: int = Field(default=3, ge=1)
    engines: int = Field(default=1, ge=1)
    gpus_per_engine: int = Field(default=1, ge=1)
    batch_size: int = Field(default=256, ge=1)


class VllmBatches:
    """A strategy that runs the model itself. Raises ExtractionError when vLLM is not installed."""

    caches = True

    def __init__(self, settings: VllmSettings) -> None:
        if find_spec("vllm") is None:
            raise ExtractionError(
                "the vllm strategy needs vLLM and a GPU: pip install 'rayzero[vllm]', or use --strategy endpoint"
            )
        self._settings = settings

    @property
    def identity(self) -> Mapping[str, object]:
        """The model and its sampling."""
        return {
            "strategy": "model",
            **{name: getattr(self._settings, name) for name in ("model", "temperature", "max_tokens")},
        }

    def extract(self, reports: Mapping[str, Report], style: Style) -> Iterator[tuple[str, Outcome]]:
        """See ``Strategy.extract``: outcomes come in the order in which engines finish them."""
        waiting, spent = dict(reports), dict.fromkeys(reports, Usage())
        for attempt in range(self._settings.attempts):
            if not waiting:
                return
            last = attempt + 1 == self._settings.attempts
            for key, outcome in self._run(waiting, style, seed=attempt):
                spent[key] = _sum(spent[key], outcome.usage, retries=attempt)
                if outcome.failure and not last:
                    continue
                waiting.pop(key)
                yield key, replace(outcome, usage=spent[key])

    def _run(self, reports: Mapping[str, Report], style: Style, *, seed: int) -> Iterator[tuple[str, Outcome]]:
        """One pass over ``reports``."""
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        if not ray.is_initialized():
            join(log_to_driver=False)
        settings = self._settings
        config = vLLMEngineProcessorConfig(
            model_source=settings.model,
            batch_size=settings.batch_size,
            concurrency=settings.engines,
            # One report that does not fit the model's context must not end the run.
            should_continue_on_error=True,
            engine_kwargs={
                "tensor_parallel_size": settings.gpus_per_engine,
                "max_model_len": settings.max_model_len,
                # Instructions and example are the same for every report: they are computed once.
                "enable_prefix_caching": True,
            },
        )
        processor = build_processor(
            config,
            preprocess=lambda row: request(row, settings, style, seed),
            postprocess=lambda row: {name: row[name] for name in ("key", "generated_text", *_COUNTS)},
        )
        rows = [{"key": key, "findings": r.findings, "impression": r.impression} for key, r in reports.items()]
        for row in processor(ray.data.from_items(rows)).iter_rows():
            yield row["key"], read_row(row, style)


_COUNTS = ("num_input_tokens", "num_generated_tokens")


def _sum(one: Usage, two: Usage, *, retries: int) -> Usage:
    return Usage(
        prompt_tokens=one.prompt_tokens + two.prompt_tokens,
        completion_tokens=one.completion_tokens + two.completion_tokens,
        retries=retries,
    )


def request(row: Mapping[str, Any], settings: VllmSettings, style: Style, seed: int) -> dict[str, Any]:
    """A row of (key, findings, impression) as what vLLM is asked; decoding is held to the answer's schema."""
    report = Report(findings=row["findings"], impression=row["impression"])
    return {
        "key": row["key"],
        "messages": messages(report, style),
        "sampling_params": {
            "temperature": settings.temperature if seed == 0 else max(settings.temperature, 0.7),
            "max_tokens": settings.max_tokens,
            "seed": seed,
            "structured_outputs": {"json": answer_schema(style)},
        },
    }


def read_row(row: Mapping[str, Any], style: Style) -> Outcome:
    """A row that vLLM returned as an outcome."""
    if row.get("__inference_error__"):
        return Outcome(failure="inference", detail=str(row["__inference_error__"])[:200])
    prompt_tokens, completion_tokens = (int(row.get(name) or 0) for name in _COUNTS)
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    try:
        return Outcome(sentences=read_answer(row["generated_text"], style), usage=usage)
    except AnswerError as error:
        return Outcome(usage=usage, failure="answer refused", detail=str(error)[:200])
