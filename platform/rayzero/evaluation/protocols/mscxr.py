"""MS-CXR: phrases with boxes, in the three ways that papers score them (datasets spec, 3.1 and 5.2)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import EVERY_FILM, Benchmark
from rayzero.evaluation.measures import phrase_overlap, pointing
from rayzero.evaluation.protocols.registry import publish

_LEAK = "MS-CXR images are mostly in MIMIC-CXR's train split: see --exclude of jobs.ingest."
_POINTING = {
    "MedKLIP": 0.407, "BioViL-T": 0.719, "CARZero": 0.749, "RadZero 224": 0.832, "RadZero 518": 0.844,
}  # fmt: skip

publish(
    Benchmark(
        name="ms-cxr",
        title="MS-CXR, contrast and overlap of every phrase",
        corpora=("ms-cxr",),
        views=EVERY_FILM,
        phrases=True,
        measures=(phrase_overlap, pointing),
        quirks=(_LEAK, "Papers measure all pairs; with release 1.1.0 the lake's test split is a part of them."),
    )
)
publish(
    Benchmark(
        name="ms-cxr-pointing",
        title="MS-CXR, pointing game on phrases",
        corpora=("ms-cxr",),
        views=EVERY_FILM,
        phrases=True,
        measures=(pointing,),
        reference={"pointing": _POINTING},
        quirks=(
            _LEAK,
            "Published figures are over the 167 pairs of MedRPG's split, of which only the first box counts; here any "
            "box of the phrase does.",
        ),
    )
)
