"""The study decides: what Tune reports to it, what it is told, and what a resumed driver finds there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from rayzero.config import Config, ConfigError, load_config, override
from tune.answer import collect
from tune.budget import Budget
from tune.space import Choice, FloatRange, Halving, Objective, Space
from tune.study import FINISHED, NUMBER, StudySearch, begun, open_storage, open_study, unfinished
from tune.sweep import failures

AUROC = "validation/macro_auroc"
BUDGET = Budget(images=900, unit=100)
SPACE = Space(
    preset="quickstart",
    parameters={"model.temperature": FloatRange(type="float", low=0.02, high=0.5, log=True)},
    start=({"model.temperature": 0.07},),
    halving=Halving(reduction=3, rungs=2),
)


BASE = load_config(None, ["seed=0", "training.steps=30"])


def study_at(
    folder: Path, space: Space = SPACE, *, base: Config = BASE, lake: str = "lake", resume: bool = False
) -> optuna.Study:
    storage = open_storage(f"sqlite:///{folder}/optuna.db")
    return open_study(storage, "small", space, BUDGET, base, lake, resume=resume)


def report(value: float, images: int, **more: Any) -> dict[str, Any]:
    return {AUROC: value, "images_seen": images, "step": images // 10, "time_total_s": 1.0, **more}


def test_halving_stops_the_worse_and_the_study_knows_them_as_pruned(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    search = StudySearch(study, SPACE, BUDGET)
    values = (0.6, 0.9, 0.5, 0.8, 0.7, 0.55)
    for index in range(len(values)):
        search.suggest(str(index))
    stopped = [search.receive(str(index), report(value, 100)) for index, value in enumerate(values)]
    # The best third of those that have come so far goes on; the first has nobody to be compared with.
    assert stopped == [False, False, True, True, True, True]
    # Between rungs nobody is stopped, and 96-image batches may come a little late.
    assert not search.receive("0", report(0.1, 200))
    assert search.receive("0", report(0.1, 304)) is False
    assert search.receive("1", report(0.95, 300)) is False
    assert not search.receive("1", report(0.96, 900))
    search.receive("1", report(0.96, 900, **{FINISHED: True}))
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.RUNNING, TrialState.COMPLETE] + 4 * [TrialState.PRUNED]
    assert study.trials[2].value == 0.5
    assert study.best_trial.number == 1
    assert study.trials[1].intermediate_values == {100: 0.9, 300: 0.95, 900: 0.96}
    # What comes after the study's decision changes nothing.
    assert not search.receive("2", report(0.99, 900, **{FINISHED: True}))
    assert study.trials[2].value == 0.5


def test_a_resumed_driver_takes_up_what_was_running_and_repeats_nothing(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    search = StudySearch(study, SPACE, BUDGET)
    first = [search.suggest(name) for name in "abc"]
    assert first[0]["model.temperature"] == 0.07
    search.receive("a", report(0.9, 900, **{FINISHED: True}))
    search.receive("b", report(0.8, 100))
    before = study.trials

    again = study_at(tmp_path, resume=True)  # nothing is left of the first driver but the file
    left = unfinished(again)
    assert left == [1, 2]
    resumed = StudySearch(again, SPACE, BUDGET, left)
    assert [resumed.suggest(name) for name in "xy"] == first[1:]
    assert begun(again) == 3
    assert resumed.suggest("z")[NUMBER] == 3
    drawn = [trial.params["model.temperature"] for trial in again.trials]
    assert len(set(drawn)) == 4
    resumed.receive("x", report(0.81, 100))  # reported again, since its run went on from an earlier checkpoint
    resumed.receive("x", report(0.85, 900, **{FINISHED: True}))
    assert again.trials[0] == before[0]
    assert again.trials[1].value == 0.85
    assert again.trials[1].intermediate_values == {100: 0.8, 900: 0.85}


def test_failures_and_figures_that_are_no_numbers_are_told_as_failed(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    search = StudySearch(study, SPACE, BUDGET)
    for name in "abc":
        search.suggest(name)
    search.on_trial_complete("a", error=True)
    assert not search.receive("b", report(float("nan"), 100))
    search.receive("b", report(float("nan"), 900, **{FINISHED: True}))
    search.on_trial_complete("c", report(0.5, 100))  # cut off by the time budget
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]


def test_a_failed_trial_keeps_its_error_as_one_line(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    search = StudySearch(study, SPACE, BUDGET)
    for name in "abc":
        search.suggest(name)
    error = "run 'trial-0000' stopped: loss is not a number\n  at step 7"
    search.receive("a", {"run_folder": "trials/trial-0000", "error": error, FINISHED: True})
    search.receive("b", {"error": "a line " * 200, FINISHED: True})
    search.receive("c", report(float("nan"), 900, **{FINISHED: True}))
    found = {trial.number: trial for trial in collect(study_at(tmp_path, resume=True), SPACE.objectives, BUDGET).trials}
    assert found[0].state == found[1].state == found[2].state == "failed"
    assert found[0].error == "run 'trial-0000' stopped: loss is not a number at step 7"
    assert len(found[1].error) <= 300
    assert found[1].error.endswith(" ...")
    assert failures(found.values()) == [
        f"failed  trial 0: {found[0].error}",
        f"failed  trial 1: {found[1].error}",
        "failed  trial 2: its figures are not numbers",
    ]


def test_several_objectives_are_told_together(tmp_path: Path) -> None:
    objectives = (Objective(), Objective(metric="images_per_second"))
    space = SPACE.model_copy(update={"objectives": objectives, "halving": None})
    study = study_at(tmp_path, space)
    search = StudySearch(study, space, BUDGET)
    search.suggest("a")
    assert not search.receive("a", report(0.7, 100))
    search.receive("a", report(0.8, 900, images_per_second=12.0, **{FINISHED: True}))
    assert study.trials[0].values == [0.8, 12.0]
    assert study.trials[0].user_attrs["curve"] == {"100": 0.7, "900": 0.8}


def test_a_grid_is_every_combination_once_and_survives_a_resume(tmp_path: Path) -> None:
    parameters = {name: Choice(type="choice", values=(1, 2, 3)) for name in ("model.blocks", "training.lr")}
    space = SPACE.model_copy(update={"parameters": parameters, "sampler": "grid", "start": ()})
    search = StudySearch(study_at(tmp_path, space), space, BUDGET)
    drawn = [search.suggest(str(index)) for index in range(4)]
    again = study_at(tmp_path, space, resume=True)
    search = StudySearch(again, space, BUDGET)
    drawn += [search.suggest(str(index)) for index in range(5)]
    assert len({(one["model.blocks"], one["training.lr"]) for one in drawn}) == 9
    assert len(again.trials) == 9


def test_a_sweep_is_begun_once_and_resumed_with_its_own_space(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sweep 'small' to resume"):
        study_at(tmp_path, resume=True)
    study_at(tmp_path)
    with pytest.raises(ConfigError, match="--resume"):
        study_at(tmp_path)
    with pytest.raises(ConfigError, match="began with another space"):
        study_at(tmp_path, SPACE.model_copy(update={"start": ()}), resume=True)
    with pytest.raises(ConfigError, match=r"other settings \(training.lr, training.steps\)"):
        study_at(tmp_path, base=override(BASE, {"training.steps": 90, "training.lr": 1.0}), resume=True)
    with pytest.raises(ConfigError, match="another version of the lake"):
        study_at(tmp_path, lake="another", resume=True)
    carried_out_otherwise = override(BASE, {"training.cpus_per_worker": 0.25})
    study_at(tmp_path, SPACE.model_copy(update={"trials": 99}), base=carried_out_otherwise, resume=True)
