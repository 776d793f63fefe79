"""Prompts and queries of a file in place of a benchmark's own.

Prompts are JSON by class: a list of sentences, or a grammar ``{"severity": [...], "subtype": [...], "location":
[...]}`` whose products are the sentences, as GLoRIA publishes its own for CheXpert 5x200. Queries are the CSV
``Variable,Text`` of CheXpert 8x200. Neither file is ours to ship.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from rayzero.evaluation.benchmark import Benchmark
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.scores import read_json, read_table

GRAMMAR = ("severity", "subtype", "location")


def with_prompts(benchmark: Benchmark, url: str) -> Benchmark:
    """``benchmark`` asking with the prompts of a JSON file, the mean over a class's prompts being its score.

    Raises EvaluationError for a class without prompts, and for one that the benchmark has not.
    """
    values = read_json(url)
    assert not callable(benchmark.targets)
    names = [one.name for one in benchmark.targets]
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        found = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise EvaluationError(f"{url} has prompts of {found}; those of {', '.join(names)} are needed")
    targets = tuple(replace(one, prompts=expand(values[one.name], f"{url}, {one.name}")) for one in benchmark.targets)
    counts = ", ".join(f"{len(one.prompts)} of {one.name}" for one in targets)
    return replace(
        benchmark, targets=targets, quirks=(*benchmark.quirks, f"Asked with the prompts of {url}: {counts}.")
    )


def expand(value: Any, where: str) -> tuple[str, ...]:
    """The sentences of a class: a list as it is, or every severity, subtype and location joined by blanks.

    Repetitions stay, as they weigh in a mean. Raises EvaluationError for another form.
    """
    if isinstance(value, dict):
        parts = [value.get(name, [""]) for name in GRAMMAR]
        unknown = sorted(set(value) - set(GRAMMAR))
        if unknown or not all(isinstance(part, list) for part in parts):
            raise EvaluationError(f"{where}: a grammar has lists of {', '.join(GRAMMAR)} alone")
        value = [" ".join(" ".join(words).split()) for words in itertools.product(*parts)]
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise EvaluationError(f"{where}: a list of sentences, or a grammar, is needed")
    return tuple(value)


def with_queries(benchmark: Benchmark, url: str) -> Benchmark:
    """``benchmark`` asked with the sentences of a CSV of ``Variable`` and ``Text``. Raises EvaluationError."""
    columns = read_table(url).columns
    if not {"Variable", "Text"} <= set(columns):
        raise EvaluationError(f"{url} lacks the columns Variable and Text; it has: {', '.join(columns)}")
    queries = tuple(zip(columns["Variable"], columns["Text"], strict=True))
    told = f"Asked with the sentences of {url}."
    return replace(benchmark, queries=queries, quirks=(*benchmark.quirks, told))
