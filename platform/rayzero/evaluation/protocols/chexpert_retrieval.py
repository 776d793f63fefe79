"""CheXpert 5x200 and 8x200: one finding per image, found by accuracy and by P@K (datasets spec, 4 and 5.4)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import Benchmark, Target
from rayzero.evaluation.measures import accuracy, areas, measure
from rayzero.evaluation.protocols.registry import publish
from rayzero.evaluation.rankings import class_reports, image_to_image, report_texts, text_to_image
from rayzero.studies.corpora.chexpert_retrieval import EIGHT, FIVE

publish(
    Benchmark(
        name="chexpert-5x200",
        title="CheXpert 5x200, accuracy and image to report P@K",
        corpora=("chexpert-5x200",),
        targets=tuple(Target(name) for name in FIVE),
        views=("frontal",),
        texts=report_texts,
        prompt_table=True,
        measures=(accuracy, areas, measure(class_reports, cutoffs=(5, 10, 100))),
        reference={
            "accuracy": {"AlphaRAD": 0.760},
            "precision_at_100": {"GLoRIA": 0.5378, "ConVIRT": 0.4903, "VSE++": 0.2689, "DSVE": 0.2474},
        },
        quirks=(
            "The 1,000 images were drawn without a seed: compare lakes of one fingerprint only.",
            "A class's score is the mean over its prompts (--prompts gives GLoRIA's grammar or any list); ALTA "
            "averages their vectors before it normalises. The paired report is among the candidates.",
        ),
    )
)
publish(
    Benchmark(
        name="chexpert-8x200",
        title="CheXpert 8x200, P@K of images asked by images or sentences",
        corpora=("chexpert-8x200",),
        targets=tuple(Target(name) for name in EIGHT),
        views=("frontal",),
        embed=True,
        query_table=True,
        measures=(accuracy, measure(image_to_image, cutoffs=(5, 10, 50)), measure(text_to_image, cutoffs=(5, 10, 50))),
        quirks=(
            "The published queries in words are the 40 sentences of text-retrieval/query.csv (--queries); without that "
            "file the eight prompts ask.",
        ),
    )
)
