"""Open-I: 18 findings whose labels are terms of the reports' index (datasets spec, 2.1)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import EVERY_FILM, FILM, Benchmark, Target
from rayzero.evaluation.measures import areas, measure, without
from rayzero.evaluation.protocols.registry import publish
from rayzero.studies.corpora.openi import LABELS

publish(
    Benchmark(
        name="open-i",
        title="Open-I, 18 findings",
        corpora=("open-i",),
        targets=tuple(Target(name, (name.replace("_", " "),)) for name in LABELS),
        views=EVERY_FILM,
        measures=(areas, measure(without, classes=frozenset(), views=FILM)),
        reference={
            "macro_auroc": {
                "GLoRIA": 0.589, "BioViL-T": 0.702, "MedKLIP": 0.759, "KAD": 0.807, "CARZero": 0.838,
                "RadZero 224": 0.851, "RadZero 518": 0.847,
            }
        },
        quirks=(
            "Labels are substrings of index terms: Granuloma includes Calcified Granuloma, and Effusion a pericardial "
            "one. Published figures are over all 7,470 images, laterals included.",
        ),
    )
)  # fmt: skip
