"""The sweep's one record: an Optuna study in a database, which its trials, a resumed driver and the dashboard share.

Ray Tune asks it for parameters through ``StudySearch`` and leaves every decision on a reported figure to it through
``StudyScheduler``. Nothing that matters is kept in the driver, so killing that loses nothing.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from rayzero.config import Config, ConfigError, dump_yaml, parse_config
from rayzero.errors import first_line
from rayzero.training.run import changed_settings
from tune.budget import Budget
from tune.space import Halving, Space

NUMBER = "trial"
"""The trial's number in the study, beside its parameters in what Tune hands to a trial."""
FINISHED = "finished"
"""Reported by a trial whose run has come to its end."""
IMAGES_PER_SECOND = "images_per_second"

# What is kept of a trial beside its parameters and values.
_KEPT = ("step", "images_seen", IMAGES_PER_SECOND, "time_total_s", "run_folder", "error")
# An error is a line of a table; the run folder has the rest.
_ERROR_LENGTH = 300
_CONNECT_SECONDS = 10


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """The database at ``url`` (sqlite:///..., postgresql://...), its tables made where absent.

    Raises ConfigError when it cannot be reached, or is no address of a database.
    """
    try:
        address = make_url(url)
        if address.get_backend_name() == "postgresql" and address.drivername == "postgresql":
            address = address.set(drivername="postgresql+pg8000")
        connect = {"timeout": 60.0 if address.get_backend_name() == "sqlite" else _CONNECT_SECONDS}
        # Workers of a cluster come and go behind firewalls: a connection is tried before it is used.
        engine = {"connect_args": connect, "pool_pre_ping": True}
        return optuna.storages.RDBStorage(address.render_as_string(hide_password=False), engine_kwargs=engine)
    except (ArgumentError, SQLAlchemyError, ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"database {shown(url)}: {_cause(error)}; give one that answers, such as sqlite:////shared/sweep.db or "
            "postgresql://user:password@host/optuna"
        ) from None


def shown(url: str) -> str:
    """``url`` for people to read: without its password."""
    try:
        return make_url(url).render_as_string()
    except ArgumentError:
        return url


def _cause(error: BaseException) -> str:
    root = getattr(error, "orig", None) or error
    if isinstance(root, ImportError):
        return f"its driver is not installed ({root}); pip install 'rayzero[postgres]'"
    # pg8000 gives the fields of the server's answer.
    fields = root.args[0] if root.args and isinstance(root.args[0], dict) else {}
    return f"cannot be reached ({fields.get('M') or first_line(root)})"


def open_study(
    storage: optuna.storages.RDBStorage,
    name: str,
    space: Space,
    budget: Budget,
    base: Config,
    lake: str,
    *,
    resume: bool,
) -> optuna.Study:
    """The study ``name``: a new one, or with ``resume`` the one that is there.

    ``base`` is the run that its trials vary, ``lake`` the fingerprint of the lake. Raises ConfigError when a new one is
    there already, when there is none to resume, or when that had another space, run or lake: its trials would not
    compare.
    """
    known = name in optuna.study.get_all_study_names(storage)
    if known and not resume:
        raise ConfigError(
            f"sweep {name!r} is in its database already: continue it with --resume, or choose another --name"
        )
    if resume and not known:
        raise ConfigError(f"no sweep {name!r} to resume in its database; start it without --resume")
    # A resumed driver must not draw again what the killed one drew first.
    drawn = len(optuna.load_study(study_name=name, storage=storage).trials) if known else 0
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,
        sampler=_sampler(space, base.seed + drawn),
        pruner=_pruner(space.halving, budget),
        directions=["maximize" if objective.mode == "max" else "minimize" for objective in space.objectives],
    )
    began = study.user_attrs
    text = space.model_dump_json(exclude={"trials", "hours", "retries", "max_concurrent", "repeats"})
    if began.get("space", text) != text:
        raise ConfigError(f"sweep {name!r} began with another space: repeat that one, or choose another --name")
    changed = changed_settings(parse_config(began["settings"]), base) if "settings" in began else []
    if changed:
        raise ConfigError(
            f"sweep {name!r} began with other settings ({', '.join(changed)}): repeat them, or choose another --name"
        )
    if began.get("lake", lake) != lake:
        raise ConfigError(f"sweep {name!r} began on another version of the lake: choose another --name for this one")
    for key, value in (("space", text), ("settings", dump_yaml(base)), ("lake", lake)):
        study.set_user_attr(key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([objective.metric for objective in space.objectives])
    for point in space.grid() if space.sampler == "grid" else space.start:
        study.enqueue_trial(point, skip_if_exists=True)
    return study


def _sampler(space: Space, seed: int) -> optuna.samplers.BaseSampler:
    # Groups model parameters that exist for some choices only together with those choices.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, group=any(p.when for p in space.parameters.values()))


def _pruner(halving: Halving | None, budget: Budget) -> optuna.pruners.BasePruner:
    if halving is None or budget.unit is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=budget.unit, reduction_factor=halving.reduction)


def one_line(error: str) -> str:
    """``error`` without line breaks, and cut where it is very long."""
    return textwrap.shorten(error, _ERROR_LENGTH, placeholder=" ...")


def unfinished(study: optuna.Study) -> list[int]:
    """Numbers of trials that a killed driver, or one whose time was up, left running."""
    return [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]


def begun(study: optuna.Study) -> int:
    """How many trials have begun."""
    return sum(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))


class StudySearch(Searcher):
    """Hands a study's trials to Tune: first those that were left ``unfinished``, then new ones."""

    def __init__(self, study: optuna.Study, space: Space, budget: Budget, unfinished: Sequence[int] = ()) -> None:
        super().__init__()
        self._study, self._space, self._budget, self._left = study, space, budget, list(unfinished)
        self._trials: dict[str, optuna.Trial] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Tune's metric is for its table; the study has its own directions."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Parameters, and the number by which the trial's run is named."""
        if trial_id not in self._trials:
            if self._left:
                # The same trial goes on, from its run's newest checkpoint.
                number = self._left.pop(0)
                trial = optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)
            else:
                trial = self._study.ask()
            self._trials[trial_id] = trial
        trial = self._trials[trial_id]
        return {**self._space.suggest(trial), NUMBER: trial.number}

    def receive(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Record a report; whether the trial is to be stopped, which the study then knows as PRUNED."""
        trial, metrics = self._trials[trial_id], [objective.metric for objective in self._space.objectives]
        if self._is_told(trial):
            return False
        first = float(result.get(metrics[0], math.nan))
        images = int(result.get("images_seen", 0))
        done = bool(result.get(FINISHED))
        if math.isfinite(first):
            self._curve(trial, images, first)
        if done:
            self._keep(trial, result)
            values = [float(result.get(metric, math.nan)) for metric in metrics]
            if all(map(math.isfinite, values)):
                self._study.tell(trial, values)
            else:
                self._study.tell(trial, state=TrialState.FAIL)
            return False
        # At its end there is nothing left to save.
        compared = len(metrics) == 1 and math.isfinite(first) and images < self._budget.images
        if compared and trial.should_prune():
            self._keep(trial, result)
            self._study.tell(trial, state=TrialState.PRUNED)
            return True
        return False

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler, which Tune asks first, has received it."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell of a trial that failed for good. One that was cut off for lack of time stays unfinished."""
        trial = self._trials[trial_id]
        if error and not self._is_told(trial):
            self._study.tell(trial, state=TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is in its database."""

    def restore(self, checkpoint_path: str) -> None:
        """Never used: a sweep resumes from its study."""
        raise NotImplementedError("a sweep resumes from its study")

    def _curve(self, trial: optuna.Trial, images: int, value: float) -> None:
        if len(self._space.objectives) == 1:
            if images not in self._study.get_trials(deepcopy=False)[trial.number].intermediate_values:
                trial.report(value, step=images)
        else:  # Optuna keeps no curves of trials with several objectives
            trial.set_user_attr("curve", {**trial.user_attrs.get("curve", {}), str(images): value})

    def _keep(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        for name in _KEPT:
            if name in result:
                trial.set_user_attr(name, one_line(result[name]) if name == "error" else result[name])

    def _is_told(self, trial: optuna.Trial) -> bool:
        return self._study.get_trials(deepcopy=False)[trial.number].state.is_finished()


class StudyScheduler(FIFOScheduler):
    """Stops the trials that the study's pruner gives up."""

    def __init__(self, search: StudySearch) -> None:
        super().__init__()
        self._search = search

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """See StudySearch."""
        return True

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Tune's question after each report."""
        stop = self._search.receive(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
