"""RSNA pneumonia under its three incompatible protocols (datasets spec, 3.3)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import Benchmark, Target
from rayzero.evaluation.measures import answers, areas, folds, measure, pointing, segmentation
from rayzero.evaluation.protocols.registry import publish
from rayzero.studies.corpora.rsna import FINDING

_TARGETS = (Target(FINDING, (FINDING,)),)

publish(
    Benchmark(
        name="rsna-medklip",
        title="RSNA pneumonia, MedKLIP's 5,337 test images, boxes as masks",
        corpora=("rsna-pneumonia-medklip",),
        targets=_TARGETS,
        segmented=True,
        tuned=True,
        measures=(areas, pointing, segmentation),
        reference={
            "macro_auroc": {
                "MedKLIP": 0.869, "CARZero": 0.747, "RadZero 224": 0.839, "RadZero 518": 0.834, "AlphaRAD": 0.841,
            },
            "dice": {
                "GLoRIA": 0.347, "BioViL": 0.439, "MedKLIP": 0.465, "G2D": 0.477, "CARZero": 0.540,
                "CARZero, logits": 0.529, "RadZero 224": 0.562, "RadZero 518": 0.546,
            },
        },
        quirks=("The masks are filled boxes of opacities, with corners cut to whole pixels.",),
    )
)  # fmt: skip
publish(
    Benchmark(
        name="rsna-gloria",
        title="RSNA pneumonia, GLoRIA's and MGCA's 70/15/15 split",
        corpora=("rsna-pneumonia",),
        targets=_TARGETS,
        segmented=True,
        tuned=True,
        measures=(areas, measure(answers, criterion="f1"), pointing, segmentation),
        quirks=("The published split shuffles images: give it as splits.csv at ingest, or the lake's is measured.",),
    )
)
publish(
    Benchmark(
        name="rsna-alta",
        title="RSNA pneumonia, ALTA's 3,000 test images, two prompts",
        corpora=("rsna-pneumonia-alta",),
        targets=(Target(FINDING, ("pneumonia",)),),
        opposed=True,
        tuned=True,
        measures=(areas, measure(answers, criterion="f1"), folds),
        quirks=(
            "The score is the softmax of the logits of 'There is' and 'There is no': ALTA takes it of unscaled "
            "cosines, which changes no ranking but the grid of thresholds that its folds choose from.",
            "ALTA chose its checkpoint by AUROC on this list's validation images.",
        ),
    )
)
