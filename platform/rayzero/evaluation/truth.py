"""What the lake says is true of a split: labels, sentences and regions, read without any pixel."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.inference import split_groups
from rayzero.evaluation.metrics.classification import MASKED, Labels
from rayzero.studies.lake import Lake, read_parquet_group
from rayzero.studies.study import Study

# A report shows hits and misses of the same findings: so many candidates for each example that it draws.
_CANDIDATES = 4


@dataclass(frozen=True)
class Truth:
    """The studies of one split, or of several, by id, without images; ``where`` names lake and split in messages.

    ``images`` counts the images of each.
    """

    studies: Mapping[str, Study]
    where: str
    images: Mapping[str, int] = field(default_factory=dict)

    @property
    def findings(self) -> tuple[str, ...]:
        """Every finding with a label or a region, in alphabetical order."""
        labelled = {name for study in self.studies.values() for name in study.labels}
        marked = {region.finding for study in self.studies.values() for region in study.regions}
        return tuple(sorted(labelled | marked))

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every distinct report sentence, in alphabetical order."""
        return tuple(sorted({text for study in self.studies.values() for text in study.said}))

    def labels(self, study_ids: Sequence[str], findings: Sequence[str]) -> Labels:
        """Labels (N, C) of the studies: 1, 0, or MASKED where uncertain or not given.

        Raises EvaluationError when no study has a label.
        """
        rows = [[_label(self.studies[study_id], name) for name in findings] for study_id in study_ids]
        labels = np.array(rows, dtype=np.int8).reshape(len(rows), len(findings))
        if not (labels != MASKED).any():
            raise EvaluationError(f"{self.where} has no labels; ingest the corpus with its label table")
        return labels

    def pick_examples(self, drawn: int) -> frozenset[str]:
        """Studies with regions among which a report finds ``drawn`` examples, spread over the findings.

        The same for the same split.
        """
        count = _CANDIDATES * drawn
        order = sorted(self.studies, key=lambda name: hashlib.sha256(name.encode()).digest())
        queues = {name: [s for s in order if _marks(self.studies[s], name)] for name in self.findings}
        chosen: dict[str, None] = {}
        for turn in range(max(map(len, queues.values()), default=0)):
            for queue in queues.values():
                if turn < len(queue) and len(chosen) < count:
                    chosen[queue[turn]] = None
        return frozenset(chosen)


def read_truth(lake: Lake, *splits: str) -> Truth:
    """The truth of ``splits``. Raises EvaluationError when the lake has no such split."""
    images: dict[str, int] = {}
    for group in (group for split in splits for group in split_groups(lake, split)):
        for row in read_parquet_group(group, ["study_id", "images.list.element.view"]).to_pylist():
            images[row["study_id"]] = len(row["images"])
    studies = lake.read(splits=splits, columns=("labels", "sentences", "regions", "report", "prior_study_id"))
    named = " + ".join(map(repr, splits))
    return Truth({study.study_id: study for study in studies}, f"split {named} of the lake at {lake.url}", images)


def _label(study: Study, finding: str) -> int:
    value = study.labels.get(finding, MASKED)
    return value if value in (0, 1) else MASKED


def _marks(study: Study, finding: str) -> bool:
    return any(region.finding == finding for region in study.regions)
