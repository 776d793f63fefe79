"""An interrupted evaluation continues: what was scored is read, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayzero.bundle import Bundle
from rayzero.evaluation.inference import GroupScorer, InProcess
from rayzero.evaluation.kept import Kept
from rayzero.evaluation.records import SCHEMA, ImageScores, Task
from rayzero.studies.lake import RowGroup
from tests.evaluation.lakes import make_lake

_TASK = Task((("cardiomegaly", "There is cardiomegaly"),), segment=frozenset(["cardiomegaly"]), embed=True)


def test_a_killed_evaluation_continues_at_the_next_row_group(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = make_lake(tmp_path / "lake", validation=2, test=70)
    groups = lake.row_groups(["test"])
    kept = Kept(str(tmp_path / "scores"), "weights")
    scored: list[int] = []
    score = GroupScorer.score

    def counted(self: GroupScorer, group: RowGroup) -> Iterator[ImageScores]:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(group.index)
        return score(self, group)

    monkeypatch.setattr(GroupScorer, "score", counted)
    with pytest.raises(KeyboardInterrupt):
        InProcess(bundle, 8, kept)(lake, "test", _TASK)
    scored[:] = [-1]
    records = InProcess(bundle, 8, kept)(lake, "test", _TASK)
    assert scored == [-1, groups[2].index]
    monkeypatch.undo()
    fresh = InProcess(bundle, 8)(lake, "test", _TASK)
    assert [one.image_id for one in records] == [one.image_id for one in fresh]
    for one, other in zip(records, fresh, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
        np.testing.assert_array_equal(one.embedding, other.embedding)
        assert one.view == other.view == "frontal"
        for mine, theirs in zip(one.regions, other.regions, strict=True):
            assert mine.histograms is not None
            assert theirs.histograms is not None
            np.testing.assert_array_equal(mine.histograms.everything, theirs.histograms.everything)


def test_scores_are_found_again_only_for_the_same_question(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = make_lake(tmp_path / "lake", validation=2, test=4)
    (group,) = lake.row_groups(["test"])
    kept = Kept(str(tmp_path / "scores"), "weights")
    InProcess(bundle, 8, kept)(lake, "test", _TASK)
    assert kept.read(group, _TASK, bundle.config) is not None
    evaluation = bundle.config.evaluation
    more = bundle.config.model_copy(update={"evaluation": evaluation.model_copy(update={"bootstrap": 7})})
    other = bundle.config.model_copy(update={"evaluation": evaluation.model_copy(update={"prompt": "{}?"})})
    assert kept.read(group, _TASK, more) is not None
    assert kept.read(group, _TASK, other) is None
    assert kept.read(group, replace(_TASK, embed=False), bundle.config) is None
    assert replace(kept, model="other").read(group, _TASK, bundle.config) is None
    make_lake(tmp_path / "lake", validation=2, test=4)
    assert kept.read(replace(group, path=f"{group.path}2"), _TASK, bundle.config) is None
    # Of a version whose records had other columns.
    monkeypatch.setattr("rayzero.evaluation.kept.SCHEMA", SCHEMA.remove(0))
    assert kept.read(group, _TASK, bundle.config) is None
