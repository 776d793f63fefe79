"""What a sweep found: its trials as the study has them, ranked, and what each setting did."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t as student

from tune.budget import Budget
from tune.space import Objective
from tune.study import IMAGES_PER_SECOND

NO_FIGURES = "its figures are not numbers"
"""Why a trial failed that ended without an error."""
_STATES: Mapping[TrialState, Literal["complete", "stopped", "failed", "unfinished"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}


@dataclass(frozen=True)
class Trial:
    """One trial: its settings, its figures, how far it trained and at what cost.

    ``values`` are the objectives' at the end of a complete trial; a stopped one has the first objective's last value.
    ``curve`` holds (images seen, first objective). ``seconds`` are of wall time.
    """

    number: int
    state: Literal["complete", "stopped", "failed", "unfinished"]
    parameters: dict[str, Any]
    values: tuple[float, ...] = ()
    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    images_per_second: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    run_folder: str = ""
    error: str = ""

    @property
    def value(self) -> float:
        """The first objective; not a number where there is none."""
        return self.values[0] if self.values else math.nan


@dataclass(frozen=True)
class Repeated:
    """A trial run again with other seeds: the first objective of each, and the mean's 95 % interval (Student's t)."""

    number: int
    parameters: dict[str, Any]
    values: tuple[float, ...]
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SweepResult:
    """Trials, complete ones first and best first, and what follows from them.

    ``repeats_left`` counts runs with other seeds for which the time was too short, ``repeats_failed`` says of those
    that failed why: the trial that lacks one is not among the ``repeated``.
    """

    name: str
    objectives: tuple[Objective, ...]
    trials: tuple[Trial, ...]
    budget: Budget
    importance: dict[str, float]
    repeated: tuple[Repeated, ...] = ()
    repeats_left: int = 0
    repeats_failed: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """The first objective's metric."""
        return self.objectives[0].metric

    def of(self, state: str) -> tuple[Trial, ...]:
        """The trials of one state."""
        return tuple(trial for trial in self.trials if trial.state == state)

    @property
    def best(self) -> Trial:
        """The winner: the best mean over seeds where trials were repeated, else the best complete trial."""
        if self.repeated:
            return next(trial for trial in self.trials if trial.number == self.repeated[0].number)
        return self.trials[0]

    @property
    def pareto(self) -> tuple[Trial, ...]:
        """Complete trials than which none is better in one objective and no worse in the others."""
        complete = self.of("complete")
        return tuple(trial for trial in complete if not any(self._dominates(other, trial) for other in complete))

    @property
    def images(self) -> int:
        """Images that all trials trained on."""
        return sum(trial.images for trial in self.trials)

    @property
    def share(self) -> float:
        """These over the images that as many trials at full length would have taken."""
        return self.images / (self.budget.images * max(1, len(self.trials)))

    def _dominates(self, left: Trial, right: Trial) -> bool:
        gains = [
            (a - b) * (1 if objective.mode == "max" else -1)
            for a, b, objective in zip(left.values, right.values, self.objectives, strict=True)
        ]
        return min(gains) >= 0 and max(gains) > 0


def collect(
    study: optuna.Study, objectives: tuple[Objective, ...], budget: Budget, repeats: optuna.Study | None = None
) -> SweepResult:
    """The study's trials, ranked."""
    trials = [
        _trial(frozen, _error(study, frozen)) for frozen in study.get_trials(deepcopy=False) if frozen.state in _STATES
    ]
    sign = -1.0 if objectives[0].mode == "max" else 1.0
    order = ("complete", "stopped", "unfinished", "failed")
    trials.sort(
        key=lambda one: (order.index(one.state), -one.images if one.state == "stopped" else 0, sign * one.value)
    )
    repeated = _repeated(trials, repeats, sign) if repeats else ()
    return SweepResult(
        name=study.study_name,
        objectives=objectives,
        trials=tuple(trials),
        budget=budget,
        importance=importance(trials, objectives[0]),
        repeated=repeated,
        repeats_left=sum(not one.state.is_finished() for one in repeats.get_trials(deepcopy=False)) if repeats else 0,
        repeats_failed=_repeats_failed(repeats) if repeats else (),
    )


def importance(trials: Sequence[Trial], objective: Objective) -> dict[str, float]:
    """The share of the first objective's variance that each setting explains (fANOVA), largest first.

    Trials are compared after equally many images: as many as all of them saw, so that stopped ones count. Settings
    that only some trials have are left out, and all of them where trials are too few.
    """
    reached = [trial for trial in trials if trial.curve and trial.state in ("complete", "stopped")]
    images = min((trial.curve[-1][0] for trial in reached), default=0)
    # With another batch size, a report comes a little later.
    points = [(one.parameters, min(one.curve, key=lambda at: abs(at[0] - images))[1]) for one in reached]
    names = set.intersection(*(set(parameters) for parameters, _ in points)) if points else set()
    varied = sorted(name for name in names if len({parameters[name] for parameters, _ in points}) > 1)
    if len(points) < 4 or not varied or len({value for _, value in points}) < 2:
        return {}
    study = optuna.create_study(direction="maximize" if objective.mode == "max" else "minimize")
    for parameters, value in points:
        chosen = {name: parameters[name] for name in varied}
        spaces = {name: _distribution([one[name] for one, _ in points]) for name in varied}
        study.add_trial(optuna.create_trial(params=chosen, distributions=spaces, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    return {name: float(value) for name, value in found.items()}


def _distribution(values: Sequence[Any]) -> optuna.distributions.BaseDistribution:
    distinct = sorted(set(values), key=str)
    if all(isinstance(value, float) for value in distinct):
        return optuna.distributions.FloatDistribution(min(distinct), max(distinct), log=min(distinct) > 0)
    if all(isinstance(value, int) and not isinstance(value, bool) for value in distinct) and len(distinct) > 4:
        return optuna.distributions.IntDistribution(min(distinct), max(distinct))
    return optuna.distributions.CategoricalDistribution(distinct)


def _trial(frozen: FrozenTrial, error: str) -> Trial:
    kept = frozen.user_attrs
    curve = kept.get("curve") or frozen.intermediate_values
    points = tuple(sorted((int(images), float(value)) for images, value in curve.items()))
    values = tuple(frozen.values or ())
    return Trial(
        number=frozen.number,
        state=_STATES[frozen.state],
        parameters=dict(frozen.params),
        values=values,
        steps=int(kept.get("step", 0)),
        images=int(kept.get("images_seen", points[-1][0] if points else 0)),
        seconds=float(kept.get("time_total_s", 0.0)),
        images_per_second=kept.get(IMAGES_PER_SECOND),
        curve=points,
        run_folder=kept.get("run_folder", ""),
        error=error,
    )


def _repeated(trials: Sequence[Trial], repeats: optuna.Study, sign: float) -> tuple[Repeated, ...]:
    """Trials with a figure for every seed: the mean of fewer may be luck."""
    by_number = {trial.number: trial for trial in trials}
    values: dict[int, list[float]] = {}
    short: set[int] = set()
    for frozen in repeats.get_trials(deepcopy=False):
        number = int(_asked(frozen)["of"])
        if frozen.state == TrialState.COMPLETE:
            values.setdefault(number, []).append(frozen.values[0])
        else:
            short.add(number)
    rows = [
        Repeated(number, by_number[number].parameters, tuple(found), *mean_interval(found))
        for number, found in values.items()
        if number not in short
    ]
    return tuple(sorted(rows, key=lambda row: sign * row.mean))


def _repeats_failed(repeats: optuna.Study) -> tuple[str, ...]:
    return tuple(
        f"trial {_asked(frozen)['of']} with seed {_asked(frozen)['repeat']}: {_error(repeats, frozen) or NO_FIGURES}"
        for frozen in repeats.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    )


def _asked(frozen: FrozenTrial) -> dict[str, Any]:
    """What a repeat was queued with; its parameters, too, once it has begun."""
    asked: dict[str, Any] = frozen.system_attrs["fixed_params"]
    return asked


def _error(study: optuna.Study, frozen: FrozenTrial) -> str:
    """Why a trial failed, as Tune or the trial itself said; empty where neither did."""
    return str(study.user_attrs.get("errors", {}).get(str(frozen.number)) or frozen.user_attrs.get("error", ""))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of ``values`` (n,) and its 95 % interval by Student's t; without bounds (not a number) for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half
