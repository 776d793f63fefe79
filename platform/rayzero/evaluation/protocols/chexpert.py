"""The CheXpert test set: 500 studies labelled by a majority of radiologists (datasets spec, 2.4)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import Benchmark, Target
from rayzero.evaluation.measures import answers, areas, measure
from rayzero.evaluation.protocols.registry import publish
from rayzero.studies.corpora.chexpert_retrieval import FIVE

publish(
    Benchmark(
        name="chexpert",
        title="CheXpert test, five findings, one frontal image per study",
        corpora=("chexpert",),
        targets=tuple(Target(name) for name in FIVE),
        views=("frontal",),
        unit="study",
        first_view=True,
        tuned=True,
        measures=(areas, measure(answers, criterion="mcc")),
        reference={
            "macro_auroc": {
                "GLoRIA": 0.750, "BioViL-T": 0.789, "MedKLIP": 0.879, "KAD": 0.905, "CARZero": 0.923,
                "RadZero 224": 0.903, "RadZero 518": 0.900, "AlphaRAD": 0.893,
            }
        },
        quirks=("CheXzero takes thresholds from the 200 validation studies, as the strict figures do.",),
    )
)  # fmt: skip
