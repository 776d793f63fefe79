from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rayzero.bundle import Bundle
from rayzero.evaluation.metrics.bootstrap import Bootstrap
from rayzero.evaluation.progression import progression
from rayzero.evaluation.protocols.registry import find_protocol
from rayzero.evaluation.records import ImageScores
from rayzero.evaluation.report import write_report
from rayzero.evaluation.sections import Scored
from rayzero.evaluation.truth import Truth
from rayzero.studies.lake import write_lake
from rayzero.studies.study import Study
from tests.evaluation.lakes import studies

FINDINGS = ("edema", "effusion")


def scored(labels: np.ndarray, logits: np.ndarray, priors: dict[int, int]) -> Scored:
    """Studies 0, 1, ... of which ``priors`` says whose prior is which."""
    rows = {
        f"s{n}": Study(
            study_id=f"s{n}", patient_id=f"p{n % 5}", corpus="phantom", split="test",
            prior_study_id=f"s{priors[n]}" if n in priors else None,
            labels={name: int(value) for name, value in zip(FINDINGS, row, strict=True)},
        )
        for n, row in enumerate(labels)
    }  # fmt: skip
    none = np.zeros(0, dtype=np.float32)
    images = [ImageScores(one.study_id, one.patient_id, name, (), row, none)
              for (name, one), row in zip(rows.items(), logits, strict=True)]  # fmt: skip
    return Scored(Truth(rows, "here"), images, FINDINGS)


def test_changes_are_scored_by_the_rise_since_the_prior() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, -1], (40, 2), p=[0.45, 0.45, 0.1])
    logits = rng.normal(size=(40, 2)) + labels
    # A prior that is not in the split is as none.
    priors = {**{n: n - 20 for n in range(20, 38)}, 38: 99}
    part = scored(labels, logits, priors)
    found = progression(part, Bootstrap(part.patients, 100))
    assert found is not None
    pairs = [(n, n - 20, f) for n in range(20, 38) for f in range(2) if labels[n, f] >= 0 and labels[n - 20, f] >= 0]
    change = np.array([labels[n, f] - labels[p, f] for n, p, f in pairs])
    rise = np.array([logits[n, f] - logits[p, f] for n, p, f in pairs])
    assert (found.pairs, found.appearances) == (len(pairs), (change == 1).sum())
    assert found.resolutions == (change == -1).sum()
    assert found.appeared.value == pytest.approx(roc_auc_score(change == 1, rise))
    assert found.resolved.value == pytest.approx(roc_auc_score(change == -1, -rise))
    assert found.appeared.low <= found.appeared.value <= found.appeared.high


def test_without_a_change_there_is_nothing_to_find() -> None:
    labels = np.ones((4, 2), dtype=int)
    logits = np.zeros((4, 2))
    still = scored(labels, logits, {1: 0, 3: 2})
    alone = scored(labels, logits, {})
    assert progression(still, Bootstrap(still.patients, 10)) is None
    assert progression(alone, Bootstrap(alone.patients, 10)) is None


def test_the_phantom_report_has_the_changes(bundle: Bundle, tmp_path: Path) -> None:
    test = list(studies("test", 16, 1))
    linked = [replace(one, prior_study_id=test[n - 1].study_id) if n % 2 else one for n, one in enumerate(test)]
    lake = write_lake(str(tmp_path / "lake"), [*studies("validation", 8, 0), *linked])
    result = find_protocol("phantom").run(bundle, lake)
    part = result.progression
    assert part is not None
    assert part.pairs > 12
    assert result.headline()["progression.appeared_auroc"] == (part.appeared, 0.5)
    assert result.to_json()["progression"]["resolutions"] == part.resolutions
    where = write_report(result, str(tmp_path / "report"), overlays=0)
    assert (
        f"appeared in {part.appearances} and resolved in {part.resolutions}" in Path(where, "report.html").read_text()
    )
