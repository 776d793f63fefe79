"""SIIM-ACR: pneumothorax, its masks, and images without it (datasets spec, 3.4 and 5.3)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import Benchmark, Target
from rayzero.evaluation.measures import areas, segmentation
from rayzero.evaluation.protocols.registry import publish
from rayzero.studies.corpora.siim import FINDING

publish(
    Benchmark(
        name="siim",
        title="SIIM-ACR pneumothorax, classification and segmentation",
        corpora=("siim-pneumothorax",),
        targets=(Target(FINDING),),
        segmented=True,
        tuned=True,
        measures=(areas, segmentation),
        reference={
            "macro_auroc": {
                "MedKLIP": 0.897, "CARZero": 0.924, "RadZero 224": 0.914, "RadZero 518": 0.924, "AlphaRAD": 0.948,
            },
            "dice": {
                "MedKLIP": 0.044, "G2D": 0.051, "CARZero": 0.100, "CARZero, logits": 0.081, "RadZero 224": 0.121,
                "RadZero 518": 0.171, "AlphaRAD": 0.229,
            },
            "pixel_auroc": {
                "MedKLIP": 0.648, "CARZero": 0.856, "CARZero, logits": 0.928, "RadZero 224": 0.943,
                "RadZero 518": 0.947,
            },
        },
        quirks=(
            "The published 1,704 test images come from a split by table rows, where lesions of one image fall into two "
            "splits; this lake splits by image unless splits.csv says otherwise.",
        ),
    )
)  # fmt: skip
