"""A sweep's answer: rank, importance, the Pareto front, intervals over seeds, the page and the preset."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import optuna
import pytest

from jobs.command import preset_config
from rayzero.config import parse_config
from tune.answer import Repeated, SweepResult, Trial, collect, importance, mean_interval
from tune.budget import Budget
from tune.report import preset_text, report_files
from tune.space import FloatRange, Objective, Repeats, Space
from tune.sweep import repeats_space

AUROC = Objective()
SPEED = Objective(metric="images_per_second")


def a_trial(number: int, value: float, *, temperature: float, resolution: int, stopped: bool = False) -> Trial:
    return Trial(
        number=number,
        state="stopped" if stopped else "complete",
        parameters={"model.temperature": temperature, "vision.resolution": resolution},
        values=(value,),
        images=100 if stopped else 900,
        seconds=10.0,
        images_per_second=5.0 + number,
        curve=((100, value),) if stopped else ((100, value - 0.1), (300, value - 0.05), (900, value)),
    )


def a_result(**more: object) -> SweepResult:
    trials = [
        a_trial(i, 0.9 - 0.02 * i, temperature=0.02 * 2**i, resolution=(192, 256)[i % 2], stopped=i > 2)
        for i in range(6)
    ]
    failed = Trial(number=6, state="failed", parameters={"model.temperature": 0.3}, error="out of <memory>")
    found = importance(trials, AUROC)
    return SweepResult("t", (AUROC,), (*trials, failed), Budget(900, 100), found, **more)  # type: ignore[arg-type]


def test_the_setting_that_decides_is_the_important_one() -> None:
    found = importance(a_result().trials, AUROC)
    assert list(found) == ["model.temperature", "vision.resolution"]
    assert found["model.temperature"] > 0.6
    assert importance(a_result().trials[:2], AUROC) == {}


def test_importance_is_of_the_figures_after_as_many_images_as_all_saw() -> None:
    # At first the resolution decides, at the end the temperature; a second batch size ends an image later.
    trials = [
        replace(
            a_trial(i, 0.9 - 0.02 * i, temperature=0.02 * 2**i, resolution=(192, 256)[i % 2]),
            curve=((100 + i % 2, 0.5 + 0.3 * (i % 2)), (900 + i % 2, 0.9 - 0.02 * i)),
        )
        for i in range(6)
    ]
    assert next(iter(importance(trials, AUROC))) == "model.temperature"
    failed_early = replace(trials[0], state="failed", curve=trials[0].curve[:1])
    assert importance([*trials, failed_early], AUROC) == importance(trials, AUROC)
    stopped_early = replace(trials[0], state="stopped", curve=trials[0].curve[:1])
    assert next(iter(importance([*trials[1:], stopped_early], AUROC))) == "vision.resolution"


def test_the_pareto_front_is_what_nothing_beats() -> None:
    points = [(0.9, 1.0), (0.8, 3.0), (0.7, 2.0), (0.6, 4.0), (0.6, 4.0)]
    trials = tuple(Trial(i, "complete", {}, values=point) for i, point in enumerate(points))
    result = SweepResult("t", (AUROC, SPEED), trials, Budget(900, None), {})
    assert [trial.number for trial in result.pareto] == [0, 1, 3, 4]


def test_intervals_over_seeds_are_students() -> None:
    mean, low, high = mean_interval([0.8, 0.9, 1.0])
    assert mean == pytest.approx(0.9)
    assert high - mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    assert mean - low == pytest.approx(high - mean)
    assert math.isnan(mean_interval([0.5])[1])


def test_repeats_decide_over_luck() -> None:
    rows = (Repeated(1, {}, (0.88, 0.9), *mean_interval((0.88, 0.9))), Repeated(0, {}, (0.8, 0.9), 0.85, 0.2, 1.0))
    assert a_result().best.number == 0
    assert a_result(repeated=rows).best.number == 1


def test_repeats_are_the_best_with_seeds_of_their_own() -> None:
    space = Space(
        preset="quickstart",
        parameters={"model.temperature": FloatRange(type="float", low=0.01, high=1.0)},
        repeats=Repeats(top=2, seeds=2),
    )
    repeats = repeats_space(space, a_result(), ["1", "0"], seed=42)
    settings = [repeats.settings(point) for point in repeats.grid()]
    assert [(one["model.temperature"], one["seed"]) for one in settings] == [
        (0.04, 43), (0.04, 44), (0.02, 43), (0.02, 44)
    ]  # fmt: skip


def test_a_trial_that_lacks_a_seed_is_not_ranked_by_the_others() -> None:
    study, repeats = optuna.create_study(direction="maximize"), optuna.create_study(direction="maximize")
    for value in (0.8, 0.7):
        trial = study.ask({"model.temperature": optuna.distributions.FloatDistribution(0.01, 1.0)})
        study.tell(trial, value)
    choices = {"of": optuna.distributions.CategoricalDistribution(["0", "1"])}
    choices["repeat"] = optuna.distributions.CategoricalDistribution([1, 2])
    for number in ("0", "1"):
        for seed in (1, 2):
            repeats.enqueue_trial({"of": number, "repeat": seed})
    for value in (0.8, 0.9, 0.99):
        repeats.tell(repeats.ask(choices), value)
    result = collect(study, (AUROC,), Budget(900, None), repeats)
    assert [(one.number, one.values) for one in result.repeated] == [(0, (0.8, 0.9))]
    assert (result.best.number, result.repeats_left) == (0, 1)
    # Its driver failed before it asked for what the trial varies.
    repeats.tell(repeats.ask(), state=optuna.trial.TrialState.FAIL)
    result = collect(study, (AUROC,), Budget(900, None), repeats)
    assert (result.best.number, result.repeats_left) == (0, 0)
    assert result.repeats_failed == ("trial 1 with seed 2: its figures are not numbers",)
    assert result.repeats_failed[0] in report_files(result, command="optuna-dashboard")["report.html"]


def test_the_page_and_its_numbers() -> None:
    rows = (Repeated(1, {}, (0.88, 0.9), *mean_interval((0.88, 0.9))),)
    files = report_files(a_result(repeated=rows), command="optuna-dashboard sqlite:///x.db")
    page, numbers = files["report.html"], json.loads(files["report.json"])
    # Curves, importance, temperature x resolution, one slice for each, speed, and the repeats.
    assert page.count("<svg") == 7
    assert "out of &lt;memory&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    assert numbers["best"] == 1
    assert numbers["images"] == 3 * 900 + 3 * 100
    assert numbers["share_of_full_length"] == pytest.approx(3000 / (7 * 900))


def test_the_winner_is_a_preset_that_loads() -> None:
    config = preset_config("quickstart", ["model.temperature=0.2", "storage=/elsewhere"])
    text = preset_text(a_result(), config)
    assert text.startswith("# Winner of sweep t: trial 0")
    assert parse_config(text).model["temperature"] == 0.2
    assert parse_config(text).storage == "runs"
