"""MIMIC-CXR: images and reports of the official test split retrieve each other (datasets spec, 4 and 5.4)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import Benchmark
from rayzero.evaluation.measures import measure
from rayzero.evaluation.protocols.registry import publish
from rayzero.evaluation.rankings import report_recall, report_texts

publish(
    Benchmark(
        name="mimic-retrieval",
        title="MIMIC-CXR test, retrieval of images and reports",
        corpora=("mimic-cxr", "mimic-cxr-jpg", "mimic-cxr-jpg-negbio"),
        views=("frontal",),
        unit="study",
        first_view=True,
        texts=report_texts,
        measures=(measure(report_recall, cutoffs=(1, 5, 10)),),
        quirks=(
            "No pool is canonical. Here: the test split, the first frontal image of each study, findings and "
            "impression as one text; equal reports count apart (instance) and as one (distinct).",
        ),
    )
)
