"""ChestX-ray14 under either of the two test lists that papers call official (datasets spec, 2.3)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import Benchmark, Target
from rayzero.evaluation.measures import answers, areas, measure
from rayzero.evaluation.protocols.registry import publish
from rayzero.studies.corpora.nih import LABELS

_PHRASES = {"Mass": "Lung Mass", "Nodule": "Lung Nodule", "Pleural_Thickening": "Pleural Thickening"}
_TARGETS = tuple(Target(name, (_PHRASES.get(name, name),)) for name in LABELS)

publish(
    Benchmark(
        name="chestxray14",
        title="ChestX-ray14, the community's 22,433 test images",
        corpora=("nih-chestxray14-community",),
        targets=_TARGETS,
        tuned=True,
        measures=(areas, measure(answers, criterion="f1")),
        reference={
            "macro_auroc": {
                "GLoRIA": 0.610, "BioViL-T": 0.729, "MedKLIP": 0.726, "KAD": 0.789, "CARZero": 0.811,
                "RadZero 224": 0.807, "RadZero 518": 0.804, "AlphaRAD": 0.808,
            }
        },
        quirks=("Papers call this list official; the NIH's own has 25,596 images (protocol chestxray14-nih).",),
    )
)  # fmt: skip
publish(
    Benchmark(
        name="chestxray14-nih",
        title="ChestX-ray14, the NIH's 25,596 test images",
        corpora=("nih-chestxray14",),
        targets=_TARGETS,
        tuned=True,
        measures=(areas, measure(answers, criterion="f1")),
    )
)
