"""MS-CXR: phrases with boxes, in the three ways that papers score them (datasets spec, 3.1 and 5.2)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import EVERY_FILM, Benchmark
from rayzero.evaluation.measures import phrase_overlap, pointing
from rayzero.evaluation.protocols.registry import publish

_LEAK = "MS-CXR images are mostly in MIMIC-CXR's train split: see --exclude of jobs.ingest."

publish(
    Benchmark(
        name="ms-cxr",
        title="MS-CXR, contrast and overlap of every phrase",
        corpora=("ms-cxr",),
        views=EVERY_FILM,
        phrases=True,
        every_split=True,
        measures=(phrase_overlap, pointing),
        quirks=(_LEAK, "All pairs of the release are measured, whatever split they are of."),
    )
)
publish(
    Benchmark(
        name="ms-cxr-split",
        title="MS-CXR, contrast and overlap of the test phrases of release 1.1.0",
        corpora=("ms-cxr",),
        views=EVERY_FILM,
        phrases=True,
        measures=(phrase_overlap, pointing),
        quirks=(_LEAK, "The split is by patient, 70:15:15. Release 1.0.0 has none: there, this is all pairs."),
    )
)
publish(
    Benchmark(
        name="ms-cxr-medrpg",
        title="MS-CXR, pointing game on MedRPG's 167 test phrases",
        corpora=("ms-cxr-medrpg",),
        views=EVERY_FILM,
        phrases=True,
        measures=(pointing,),
        reference={
            "pointing": {
                "MedKLIP": 0.407, "BioViL-T": 0.719, "CARZero": 0.749, "RadZero 224": 0.832, "RadZero 518": 0.844,
            }
        },
        quirks=(_LEAK, "Of a phrase with several boxes, the list's first counts alone."),
    )
)  # fmt: skip
