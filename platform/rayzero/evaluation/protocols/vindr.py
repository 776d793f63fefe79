"""VinDr-CXR test: 28 findings by consensus of five radiologists, boxes of the 22 local ones (datasets spec, 2.6)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import Benchmark, Target
from rayzero.evaluation.measures import areas, measure, pointing, without
from rayzero.evaluation.protocols.registry import publish
from rayzero.studies.corpora.vindr import LABELS, OTHER

_PHRASES = {
    "Enlarged PA": "Enlarged pulmonary artery", "ILD": "Interstitial lung disease", "Nodule/Mass": "Nodule or mass",
    "COPD": "Chronic obstructive pulmonary disease",
}  # fmt: skip

publish(
    Benchmark(
        name="vindr-cxr",
        title="VinDr-CXR test, 28 findings, boxes of 22",
        corpora=("vindr-cxr",),
        targets=tuple(Target(name, (_PHRASES.get(name, name),)) for name in LABELS),
        measures=(
            areas,
            pointing,
            measure(without, classes=frozenset({OTHER, "Other lesion", "No finding"}), views=("frontal", "unknown")),
        ),
        reference={"macro_auroc": {"AlphaRAD": 0.924}, "pointing": {"AlphaRAD": 0.554}},
        quirks=("Papers do not all say which of the 28 classes they keep; the figure of findings drops the rests.",),
    )
)
