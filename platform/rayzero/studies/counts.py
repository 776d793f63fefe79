"""What a lake holds, counted while it is written: small sums that add up over parts."""

from __future__ import annotations

from collections import Counter

from rayzero.studies.study import Study

MOST_SENTENCES = 12
"""Studies with this many sentences or more are one bin."""

_KINDS = (
    "split", "corpus", "view", "total",
    "polarity",  # of radiographs' files, before ingest: air dark or air bright
    "bits", "pixels", "spacing", "display", "sections", "sentences", "present", "uncertain", "absent",
)  # fmt: skip


def empty_counts() -> dict[str, Counter[str]]:
    """No study yet: {kind: {name: number}}."""
    return {kind: Counter() for kind in _KINDS}


def count(counts: dict[str, Counter[str]], study: Study) -> None:
    """Add ``study`` to ``counts``."""
    counts["split"][study.split] += 1
    counts["corpus"][study.corpus] += 1
    counts["total"].update(
        studies=1,
        images=len(study.images),
        sentences=len(study.sentences),
        without_sentences=int(not study.sentences),
    )
    for image in study.images:
        counts["view"][image.view] += 1
        if len(image.shape) == 2:
            counts["polarity"]["air bright" if image.inverted else "air dark"] += 1
        counts["bits"][f"{image.bits:02d}"] += 1
        counts["pixels"][" x ".join(map(str, image.shape))] += 1
        counts["spacing"]["given" if image.spacing_mm else "not given"] += 1
        counts["display"]["curve" if image.curve else "window" if image.window else "not given"] += 1
    sections = [name for name in ("findings", "impression") if getattr(study.report, name)]
    counts["sections"][" and ".join(sections) or ("other text" if study.report.text else "no report")] += 1
    counts["sentences"][f"{min(len(study.sentences), MOST_SENTENCES):02d}"] += 1
    for sentence in study.sentences:
        counts[sentence.status][sentence.finding] += 1
