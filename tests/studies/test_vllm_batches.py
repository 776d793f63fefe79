"""What vLLM is asked and how its rows are read; the engine itself needs a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

import pytest

from rayzero.reports.extraction.base import ExtractionError, Outcome, Usage
from rayzero.reports.extraction.styles import STYLES, Style
from rayzero.studies.study import Report
from rayzero.studies.vllm_batches import VllmBatches, VllmSettings, read_row, request

MINIMAL = STYLES["minimal"]
ANSWER = '{"statements": [{"finding": "edema", "status": "uncertain", "location": "left lung"}]}'


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_remedy_is_named() -> None:
    with pytest.raises(ExtractionError, match=r"pip install 'rayzero\[vllm\]'.*--strategy endpoint"):
        VllmBatches(VllmSettings(model="m"))


def test_requests_are_held_to_the_schema_and_differ_by_attempt() -> None:
    row = {"key": "k", "findings": "Edema.", "impression": ""}
    first, second = (request(row, VllmSettings(model="m"), MINIMAL, seed) for seed in (0, 1))
    assert first["key"] == "k"
    assert first["messages"][-1] == {"role": "user", "content": "FINDINGS: Edema."}
    assert first["sampling_params"]["structured_outputs"]["json"]["required"] == ["statements"]
    assert (first["sampling_params"]["temperature"], second["sampling_params"]["temperature"]) == (0.0, 0.7)
    assert (first["sampling_params"]["seed"], second["sampling_params"]["seed"]) == (0, 1)


def test_rows_become_outcomes() -> None:
    counts = {"num_input_tokens": 9, "num_generated_tokens": 4}
    answered = read_row({"generated_text": ANSWER, **counts}, MINIMAL)
    assert [s.text for s in answered.sentences] == ["There may be edema in the left lung"]
    assert answered.usage == Usage(prompt_tokens=9, completion_tokens=4)
    refused = read_row({"generated_text": ANSWER[:-1], **counts}, MINIMAL)
    assert (refused.failure, refused.usage.completion_tokens) == ("answer refused", 4)
    lost = read_row({"__inference_error__": "prompt too long", "generated_text": ""}, MINIMAL)
    assert (lost.failure, lost.detail) == ("inference", "prompt too long")


class _Scripted(VllmBatches):
    """Passes with set outcomes in place of an engine."""

    def __init__(self, passes: list[dict[str, Outcome]]) -> None:
        self._settings = VllmSettings(model="m", attempts=len(passes))
        self._passes = passes

    def _run(self, reports: Mapping[str, Report], style: Style, *, seed: int) -> Iterator[tuple[str, Outcome]]:
        assert reports.keys() == self._passes[seed].keys()
        yield from self._passes[seed].items()


def test_what_a_pass_refuses_goes_through_the_next() -> None:
    good, lost = Outcome(usage=Usage(prompt_tokens=1)), Outcome(failure="inference", usage=Usage(prompt_tokens=2))
    strategy = _Scripted([{"a": good, "b": lost, "c": lost}, {"b": good, "c": lost}, {"c": lost}])
    outcomes = dict(strategy.extract({key: Report() for key in "abc"}, MINIMAL))
    assert {key: outcome.failure for key, outcome in outcomes.items()} == {"a": "", "b": "", "c": "inference"}
    assert {key: o.usage for key, o in outcomes.items()} == {
        "a": Usage(prompt_tokens=1),
        "b": Usage(prompt_tokens=3, retries=1),
        "c": Usage(prompt_tokens=6, retries=2),
    }
