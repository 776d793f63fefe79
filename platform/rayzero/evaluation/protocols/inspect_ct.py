"""INSPECT: pulmonary embolism on CT angiograms (datasets spec, 2.9)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import VOLUME, Benchmark, Target
from rayzero.evaluation.measures import answers, areas, measure
from rayzero.evaluation.protocols.registry import publish

publish(
    Benchmark(
        name="inspect",
        title="INSPECT, pulmonary embolism",
        corpora=("inspect",),
        targets=(Target("Pulmonary embolism", ("lung embolism",), ("pe_positive_nlp",)),),
        views=VOLUME,
        tuned=True,
        measures=(areas, measure(answers, criterion="corner")),
        quirks=("The labels are predictions from the impressions.",),
    )
)
