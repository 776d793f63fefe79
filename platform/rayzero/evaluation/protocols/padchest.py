"""PadChest's 192 classes on the images that physicians labelled, and PadChest20, the rarest of them (spec, 2.2)."""

from __future__ import annotations

from rayzero.evaluation.benchmark import EVERY_FILM, FILM, Benchmark, Target
from rayzero.evaluation.measures import areas, measure, without
from rayzero.evaluation.metrics.classification import frequency_groups
from rayzero.evaluation.protocols.registry import publish
from rayzero.evaluation.sections import Groups, Scored
from rayzero.evaluation.truth import Truth
from rayzero.studies.corpora.padchest import TAIL_COUNT

NOT_FINDINGS = frozenset({"unchanged", "exclude", "suboptimal study"})
_RAREST = 100


def every_class(truth: Truth) -> tuple[Target, ...]:
    """All classes of the lake."""
    return tuple(map(_target, truth.findings))


def rare_classes(truth: Truth) -> tuple[Target, ...]:
    """The classes of at most ten images. Papers say fewer than ten; the published code takes ten, too."""
    counts = dict.fromkeys(truth.findings, 0)
    for study in truth.studies.values():
        for name, value in study.labels.items():
            counts[name] += (value == 1) * truth.images.get(study.study_id, 1)
    return tuple(_target(name) for name, count in counts.items() if 0 < count <= TAIL_COUNT)


def _target(name: str) -> Target:
    """Labels are in lower case; prompts begin a finding with a capital (datasets spec, section 6)."""
    return Target(name, (name[:1].upper() + name[1:],))


def by_frequency(test: Scored) -> Groups:
    """Head, medium and tail by positive images, and the hundred rarest."""
    counts = dict(zip(test.findings, (test.labels == 1).sum(axis=0).tolist(), strict=True))
    rarest = sorted(counts, key=lambda name: counts[name])[:_RAREST]
    return {**frequency_groups(counts), f"{_RAREST}_rarest": rarest}


publish(
    Benchmark(
        name="padchest",
        title="PadChest, all classes of the physicians' labels",
        corpora=("padchest",),
        targets=every_class,
        views=EVERY_FILM,
        grouped=by_frequency,
        measures=(areas, measure(without, classes=NOT_FINDINGS, views=FILM)),
        reference={
            "macro_auroc": {
                "GLoRIA": 0.565, "BioViL-T": 0.655, "MedKLIP": 0.629, "KAD": 0.750, "CARZero": 0.810,
                "RadZero 224": 0.841, "RadZero 518": 0.841, "AlphaRAD": 0.873,
            }
        },
        quirks=(
            "Published figures keep lateral views and classes that are no findings (unchanged, exclude, suboptimal "
            "study); the figure of findings leaves both out.",
        ),
    )
)  # fmt: skip
publish(
    Benchmark(
        name="padchest20",
        title="PadChest20, the classes of at most ten images",
        corpora=("padchest",),
        targets=rare_classes,
        views=EVERY_FILM,
        measures=(areas, measure(without, classes=NOT_FINDINGS, views=FILM)),
        reference={
            "macro_auroc": {
                "GLoRIA": 0.558, "BioViL-T": 0.608, "MedKLIP": 0.688, "KAD": 0.735, "CARZero": 0.837,
                "RadZero 224": 0.879, "RadZero 518": 0.871,
            }
        },
        quirks=("The classes are chosen by their counts in the test images, down to one: see the intervals.",),
    )
)  # fmt: skip
