"""A published benchmark as data: what is scored, how it is asked, what papers report; and its run on a lake.

A protocol file declares a ``Benchmark``. Its report holds every figure twice: as published, by the papers' own
definition (an oracle where they chose a threshold on the images that it is judged on, and named so), and strict:
thresholds from validation images or, where the lake has none, from other patients of the split, with intervals.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from rayzero.bundle import Bundle
from rayzero.config import EvaluationConfig
from rayzero.evaluation import sections
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.inference import InProcess, Scorer
from rayzero.evaluation.metrics.bootstrap import Bootstrap
from rayzero.evaluation.metrics.classification import Classification
from rayzero.evaluation.records import ImageScores, Task
from rayzero.evaluation.result import EvaluationResult, Figure
from rayzero.evaluation.sections import Groups, Scored
from rayzero.evaluation.truth import Truth, read_truth
from rayzero.studies.lake import Lake
from rayzero.studies.study import Study

FILM = ("frontal", "unknown")
EVERY_FILM = ("frontal", "lateral", "other", "unknown")
VOLUME = ("volume",)
VALIDATION = "validation"
NEGATIVE_PROMPT = "There is no {}"


@dataclass(frozen=True)
class Target:
    """A class: its name in published tables, the ``phrases`` that ask for it, the ``labels`` any of which say yes.

    The score is the highest over the phrases, each asked in a sentence; or the mean over ``prompts``, which are asked
    as they are. Without phrases or labels, the name serves.
    """

    name: str
    phrases: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """What the prompt asks for."""
        return self.phrases or (self.name,)

    @property
    def sources(self) -> tuple[str, ...]:
        """The labels of the corpus that make the class present."""
        return self.labels or (self.name,)


@dataclass(frozen=True)
class Measured:
    """What a benchmark's figures are computed from: the evaluated split, validation (None without), replicates.

    ``classification`` holds the areas of the classes; None where phrases or reports are asked for, and no classes.
    """

    test: Scored
    validation: Scored | None
    bootstrap: Bootstrap
    classification: Classification | None


Measure = Callable[["Benchmark", Measured], list[Figure]]
Reference = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One row of published tables.

    ``targets`` are its classes, or find them in the lake. ``unit`` is what one score is of: ``image``, or ``study``
    (the mean over its images, or its first image where ``first_view``). ``measures`` compute its figures and
    ``reference`` holds what papers report of each, by key and system. ``opposed`` subtracts the score of the negative
    prompt. ``grouped`` names sets of classes. ``texts`` finds what is retrieved. ``quirks`` say how the published
    figures came about. ``label_table`` benchmarks need labels that no lake of their corpus has; ``prompt_table`` and
    ``query_table`` ones take prompts per class, or ``queries`` (class, sentence), from a file. ``columns`` are those
    of published scores where they are not the targets. ``every_split`` benchmarks are measured on the whole lake.
    """

    name: str
    title: str
    corpora: tuple[str, ...]
    measures: tuple[Measure, ...]
    targets: tuple[Target, ...] | Callable[[Truth], tuple[Target, ...]] = ()
    views: tuple[str, ...] = FILM
    unit: Literal["image", "study"] = "image"
    first_view: bool = False
    opposed: bool = False
    segmented: bool = False
    phrases: bool = False
    embed: bool = False
    texts: Callable[[Truth], tuple[str, ...]] | None = None
    prompt_table: bool = False
    query_table: bool = False
    label_table: bool = False
    queries: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    grouped: Callable[[Scored], Groups] | None = None
    tuned: bool = False
    every_split: bool = False
    reference: Reference = field(default_factory=dict)
    quirks: tuple[str, ...] = ()

    @property
    def score_columns(self) -> tuple[str, ...]:
        """The classes of a published table of scores, in the order of its numbered columns."""
        if self.columns:
            return self.columns
        return () if callable(self.targets) else tuple(one.name for one in self.targets)

    @property
    def blank_label(self) -> int | None:
        """What an empty cell of a table of labels says: negative in a table of the benchmark's own, else nothing."""
        return 0 if self.label_table else None

    def find_targets(self, truth: Truth) -> tuple[Target, ...]:
        """Its classes on the studies of ``truth``."""
        return self.targets(truth) if callable(self.targets) else self.targets

    def run(
        self,
        bundle: Bundle,
        lake: Lake,
        *,
        config: EvaluationConfig | None = None,
        split: str = "test",
        scorer: Scorer | None = None,
        labels: Mapping[str, Mapping[str, int]] | None = None,
    ) -> EvaluationResult:
        """See ``registry.Run``. ``labels`` by image or study id replace those of the lake."""
        self._check(bundle, lake)
        if self.label_table and labels is None:
            raise EvaluationError(f"protocol {self.name!r} has its own table of labels; give it with --labels")
        config = config or bundle.config.evaluation
        scorer = scorer or InProcess(bundle, config.batch_size)
        splits = lake.splits if self.every_split and split == "test" else (split,)
        truth = read_truth(lake, *splits)
        # A table of labels that no lake has says nothing of validation images.
        validated = self.tuned and not self.label_table and VALIDATION in lake.splits and VALIDATION not in splits
        tuning = read_truth(lake, VALIDATION) if validated else None
        targets = self.find_targets(truth)
        prompts = self._prompts(targets, config)
        task = Task(
            prompts=prompts,
            sentences=self.texts(truth) if self.texts else tuple(text for _, text in self.queries),
            examples=truth.pick_examples(config.overlays),
            views=self.views,
            segment=frozenset(one.name for one in targets) if self.segmented else frozenset(),
            phrases=_phrases(truth) if self.phrases else (),
            embed=self.embed,
        )
        images = [one for name in splits for one in scorer(lake, name, task)]
        test = self.assemble(truth, images, targets, prompts, labels)
        validation = None
        if tuning is not None:
            tuned = replace(task, examples=frozenset(), sentences=())
            validation = self.assemble(tuning, scorer(lake, VALIDATION, tuned), targets, prompts, None)
        return self.result(
            bundle,
            test,
            validation,
            config,
            where=(lake.url, lake.fingerprint, " + ".join(splits)),
            prompts=self._templates(targets, config),
            labels=labels,
        )

    def result(
        self,
        bundle: Bundle | None,
        test: Scored,
        validation: Scored | None,
        config: EvaluationConfig,
        *,
        where: tuple[str, str, str],
        prompts: tuple[str, ...],
        system: str = "",
        labels: Mapping[str, Mapping[str, int]] | None = None,
    ) -> EvaluationResult:
        """The figures of scored images; ``where`` is (lake, fingerprint, split), ``system`` a name without bundle.

        ``labels`` is the table that ``test`` was labelled by, if one was.
        """
        bootstrap = Bootstrap(test.patients, config.bootstrap)
        groups = self.grouped(test) if self.grouped else {"classes": test.findings}
        classified = bool(test.findings) and not self.phrases
        areas = sections.classification(test, bootstrap, groups) if classified else None
        measured = Measured(test, validation, bootstrap, areas)
        figures = [figure for measure in self.measures for figure in measure(self, measured)]
        boxed = _located(test) and not (self.segmented or self.phrases)
        return EvaluationResult(
            protocol=self.name,
            title=self.title,
            system=system or (bundle.config.system if bundle else ""),
            lake=where[0],
            fingerprint=where[1],
            split=where[2],
            prompts=prompts,
            geometry=bundle.config.data.geometry if bundle else "stretch",
            crop=bundle.config.data.crop if bundle else 1.0,
            counts={
                **test.counts,
                "classes": len(test.findings),
                "validation_images": len(validation.images) if validation else 0,
            },
            notes=self._notes(validation),
            replicates=config.bootstrap,
            scored=test,
            classification=areas,
            calibration=_calibration(validation, test) if classified and validation else None,
            grounding=sections.grounding(test, bootstrap, groups) if boxed else None,
            figures=tuple(figures),
            bootstrap_key=bootstrap.key,
            labels="" if labels is None else label_digest(labels),
        )

    def _check(self, bundle: Bundle, lake: Lake) -> None:
        found = sorted(lake.counts["corpus"])
        if not set(found) <= set(self.corpora):
            raise EvaluationError(
                f"protocol {self.name!r} is measured on {' or '.join(self.corpora)}; the lake at {lake.url} holds "
                f"{', '.join(found)}: ingest that corpus into a lake of its own"
            )
        reads = bundle.config.data.input
        if (reads == "volume") != (self.views == VOLUME):
            images = "CT volumes" if self.views == VOLUME else "radiographs"
            raise EvaluationError(
                f"protocol {self.name!r} is of {images}; the bundle of {bundle.config.system} has data.input={reads}"
            )

    def _prompts(self, targets: Sequence[Target], config: EvaluationConfig) -> tuple[tuple[str, str], ...]:
        asked = [
            (one.name, text)
            for one in targets
            for text in one.prompts or [config.prompt.format(phrase) for phrase in one.asked]
        ]
        if self.opposed:
            asked += [(one.name, NEGATIVE_PROMPT.format(phrase)) for one in targets for phrase in one.asked]
        return tuple(asked)

    def _templates(self, targets: Sequence[Target], config: EvaluationConfig) -> tuple[str, ...]:
        """How findings are asked for; none where classes have sentences of their own, of which ``quirks`` tell."""
        if any(one.prompts for one in targets):
            return ()
        return (config.prompt, *config.ensemble, *([NEGATIVE_PROMPT] if self.opposed else []))

    def assemble(
        self,
        truth: Truth,
        images: Sequence[ImageScores],
        targets: Sequence[Target],
        prompts: Sequence[tuple[str, str]],
        labels: Mapping[str, Mapping[str, int]] | None,
    ) -> Scored:
        """Logits of the classes in place of those of the prompts, one record per unit, labels of the classes.

        Without classes, labels stay those of the lake.
        """
        count = sum(len(one.prompts or one.asked) for one in targets)
        names = [name for name, _ in prompts[:count]]
        columns = [[place for place, name in enumerate(names) if name == one.name] for one in targets]
        merged = []
        for one in images:
            asked = one.logits[:count] - one.logits[count:] if self.opposed else one.logits
            parts = [asked[where] for where in columns]
            logits = [part.mean() if t.prompts else part.max() for part, t in zip(parts, targets, strict=True)]
            merged.append(replace(one, logits=np.array(logits, dtype=one.logits.dtype)))
        if self.unit == "study":
            merged = _by_study(merged, first=self.first_view)
        if labels is not None:
            truth, merged = _relabelled(truth, merged, labels)
        studies = dict(truth.studies)
        if targets:
            studies = {name: replace(one, labels=_target_labels(one, targets)) for name, one in studies.items()}
        return Scored(Truth(studies, truth.where), merged, tuple(one.name for one in targets))

    def _notes(self, validation: Scored | None) -> list[str]:
        notes = list(self.quirks)
        if self.tuned and validation is None:
            notes.append(
                "There are no validation images beside those that are measured: strict thresholds are chosen on nine "
                "tenths of the patients for the tenth that they judge."
            )
        return notes


def label_digest(labels: Mapping[str, Mapping[str, int]]) -> str:
    """SHA-256 of a table of labels, whatever the order of its rows and columns."""
    rows = {name: dict(row) for name, row in labels.items()}
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _by_study(images: Sequence[ImageScores], *, first: bool) -> list[ImageScores]:
    studies: dict[str, list[ImageScores]] = {}
    for one in images:
        studies.setdefault(one.study_id, []).append(one)
    merged = []
    for views in studies.values():
        chosen = min(views, key=lambda one: (one.view != "frontal", one.image_id))
        logits = chosen.logits if first else np.mean([one.logits for one in views], axis=0)
        merged.append(replace(chosen, logits=np.asarray(logits, dtype=np.float32)))
    return merged


def _target_labels(study: Study, targets: Sequence[Target]) -> dict[str, int]:
    """1 where any source is, 0 where all are, -1 between; left out where a source has no label."""
    found = {}
    for target in targets:
        values = [study.labels[name] for name in target.sources if name in study.labels]
        if 1 in values:
            found[target.name] = 1
        elif len(values) == len(target.sources):
            found[target.name] = 0 if not any(values) else -1
    return found


def _relabelled(
    truth: Truth, images: Sequence[ImageScores], labels: Mapping[str, Mapping[str, int]]
) -> tuple[Truth, list[ImageScores]]:
    """Every image as a study of its own with the labels of a table, joined by image id, or else by study id."""
    studies: dict[str, Study] = {}
    moved = []
    absent = [one.image_id for one in images if one.image_id not in labels and one.study_id not in labels]
    if absent:
        raise EvaluationError(
            f"{truth.where}: the table of labels lacks {len(absent)} of {len(images)} images, such as {absent[0]!r}"
        )
    for one in images:
        values = labels[one.image_id] if one.image_id in labels else labels[one.study_id]
        studies[one.image_id] = replace(truth.studies[one.study_id], study_id=one.image_id, labels=values)
        moved.append(replace(one, study_id=one.image_id))
    return Truth(studies, truth.where), moved


def _phrases(truth: Truth) -> tuple[str, ...]:
    return tuple(sorted({region.phrase for study in truth.studies.values() for region in study.regions}))


def _calibration(validation: Scored, test: Scored) -> sections.CalibrationFit | None:
    """Probabilities by a scale and a bias fitted on validation; None where no class has both labels there."""
    labels = validation.labels
    usable = ((labels == 1).any(axis=0) & (labels == 0).any(axis=0)).any()
    return sections.calibration(validation, test) if usable else None


def _located(test: Scored) -> bool:
    return any(region.hit is not None for one in test.images for region in one.regions)
