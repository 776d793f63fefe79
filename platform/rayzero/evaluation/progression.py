"""Temporal queries: did a finding appear or go since the prior study? Asked by how far its score rose in between.

Both studies are scored alone, or as the system reads them; the score of a change is the difference of the two logits.
What the lake says is the change of the label. Findings are pooled, since one alone changes in a few patients only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayzero.evaluation.metrics.areas import weighted_areas
from rayzero.evaluation.metrics.bootstrap import Bootstrap, Estimate, Float, estimate
from rayzero.evaluation.metrics.classification import MASKED
from rayzero.evaluation.sections import Scored


@dataclass(frozen=True)
class Progression:
    """AUROC over (study, finding) pairs of findings that appeared, and of those that resolved, against all others.

    ``pairs`` are those whose label is known in the study and in its prior.
    """

    appeared: Estimate
    resolved: Estimate
    pairs: int
    appearances: int
    resolutions: int


def progression(scored: Scored, bootstrap: Bootstrap) -> Progression | None:
    """The changes of the split's studies whose priors are in it, too; None where no finding came, or none went."""
    row_of: dict[str, int] = {}
    for row, one in enumerate(scored.images):
        row_of.setdefault(one.study_id, row)
    followed = [
        (row, row_of[prior], scored.images[row].patient_id)
        for study_id, row in row_of.items()
        if (prior := scored.truth.studies[study_id].prior_study_id) is not None and prior in row_of
    ]
    if not followed:
        return None
    now, before = [row for row, _, _ in followed], [row for _, row, _ in followed]
    labels, logits = scored.labels, scored.logits
    known = (labels[now] != MASKED) & (labels[before] != MASKED)
    change = (labels[now].astype(np.int8) - labels[before])[known]
    rise = (logits[now] - logits[before])[known]
    owners = [followed[place][2] for place in np.nonzero(known)[0]]
    came, went = int((change == 1).sum()), int((change == -1).sum())
    if not came or not went:
        return None

    def auroc(scores: Float, step: int) -> Estimate:
        truth = change == step
        value = float(weighted_areas(scores, truth, np.ones((1, len(scores)))).auroc[0])
        drawn = bootstrap.samples(owners, lambda weights: weighted_areas(scores, truth, weights).auroc)
        return estimate(value, drawn, len(scores))

    return Progression(auroc(rise, 1), auroc(-rise, -1), len(rise), came, went)
