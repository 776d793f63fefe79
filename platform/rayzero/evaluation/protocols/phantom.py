"""The held-out phantom: every task on one split's frontal images or volumes, findings never seen in training apart.

Thresholds and calibration come from validation studies. Findings of ``NEVER_SEEN`` occur in the test split only,
so their figures are zero-shot in the strict sense; whether the lake keeps that promise is checked and noted.
"""

from __future__ import annotations

from collections.abc import Mapping

from rayzero.bundle import Bundle
from rayzero.config import EvaluationConfig
from rayzero.evaluation import sections
from rayzero.evaluation.benchmark import VALIDATION
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.inference import InProcess, Scorer
from rayzero.evaluation.metrics.bootstrap import Bootstrap
from rayzero.evaluation.progression import progression
from rayzero.evaluation.protocols.registry import Protocol, register
from rayzero.evaluation.records import Task
from rayzero.evaluation.result import EvaluationResult
from rayzero.evaluation.sections import Groups, Scored
from rayzero.evaluation.truth import Truth, read_truth
from rayzero.phantom.vocabulary import NEVER_SEEN
from rayzero.studies.lake import Lake

NAME, TITLE = "phantom", "Held-out phantom studies"


def run(
    bundle: Bundle,
    lake: Lake,
    *,
    config: EvaluationConfig | None = None,
    split: str = "test",
    scorer: Scorer | None = None,
    labels: Mapping[str, Mapping[str, int]] | None = None,
) -> EvaluationResult:
    """See ``registry.Run``. Raises EvaluationError for ``labels``: a phantom's are certain."""
    if labels is not None:
        raise EvaluationError(f"protocol {NAME!r} takes its labels from the lake; leave --labels out")
    if split == VALIDATION:
        raise EvaluationError(f"thresholds are chosen on split {split!r}; evaluate another split, such as test")
    config = config or bundle.config.evaluation
    scorer = scorer or InProcess(bundle, config.batch_size)
    truth, tuning = read_truth(lake, split), read_truth(lake, VALIDATION)
    findings = tuple(sorted({*truth.findings, *tuning.findings}))
    prompts = tuple((name, config.prompt.format(name)) for name in findings)
    examples = truth.pick_examples(config.overlays)
    views = ("volume",) if bundle.config.data.input == "volume" else ("frontal",)
    masked = {region.finding for study in truth.studies.values() for region in study.regions if region.mask}
    among = tuple(name for name in findings if name in masked)
    validation = Scored(tuning, scorer(lake, VALIDATION, Task(prompts, views=views, among=among)), findings)
    test = Scored(truth, scorer(lake, split, Task(prompts, truth.sentences, examples, views, among=among)), findings)
    groups: Groups = {
        "seen": [name for name in findings if name not in NEVER_SEEN],
        "never_seen": [name for name in findings if name in NEVER_SEEN],
    }
    bootstrap = Bootstrap(test.patients, config.bootstrap)
    return EvaluationResult(
        protocol=NAME,
        title=TITLE,
        system=bundle.config.system,
        lake=lake.url,
        fingerprint=lake.fingerprint,
        split=split,
        prompts=(config.prompt, *config.ensemble),
        bootstrap_key=bootstrap.key,
        geometry=bundle.config.data.geometry,
        crop=bundle.config.data.crop,
        counts={
            **test.counts,
            "findings": len(test.findings),
            "sentences": len(test.truth.sentences),
            "validation_images": len(validation.images),
        },
        notes=_leaks(lake, truth, split),
        replicates=config.bootstrap,
        scored=test,
        classification=sections.classification(test, bootstrap, groups),
        calibration=sections.calibration(validation, test),
        grounding=sections.grounding(test, bootstrap, groups),
        segmentation=sections.segmentation(validation, test, bootstrap, groups),
        semantic=sections.semantic_segmentation(validation, test, bootstrap, groups, among),
        retrieval=sections.retrieval(test, bootstrap),
        progression=progression(test, bootstrap),
    )


def _leaks(lake: Lake, truth: Truth, split: str) -> list[str]:
    """What the lake holds that would make a figure mean less than it says."""
    if split == "train":
        return ["These studies were trained on: the figures are not an evaluation."]
    others = [name for name in lake.splits if name != split]
    patients = {study.patient_id for study in truth.studies.values()}
    shared: set[str] = set()
    met: set[str] = set()
    for study in lake.read(splits=others, columns=("labels",)):
        shared |= {study.patient_id} & patients
        met |= {name for name in NEVER_SEEN if study.labels.get(name, 0)}
    notes = []
    if shared:
        notes.append(
            f"{len(shared)} patients of split {split!r} also have studies in other splits: figures are inflated."
        )
    if met:
        notes.append(f"Labelled outside split {split!r}, hence not never-seen: {', '.join(sorted(met))}.")
    return notes


register(Protocol(NAME, TITLE, (NAME,), run))
