"""A sweep as a YAML file: a preset, fixed overrides, the settings to search, the objectives and the budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, model_validator
from yaml import YAMLError

from rayzero.config import ConfigError, Settings, nearest, validate

Scalar = str | int | float | bool | None
Parameters = dict[str, Any]


class Parameter(Settings):
    """What all parameters have: the condition under which a trial has them at all."""

    when: dict[str, tuple[Scalar, ...]] = Field(
        default_factory=dict, description="Earlier choices, and the values of each for which this parameter exists"
    )

    def exists(self, chosen: Mapping[str, Any]) -> bool:
        """Whether a trial that has ``chosen`` so far has this parameter."""
        return all(name in chosen and chosen[name] in values for name, values in self.when.items())


class FloatRange(Parameter):
    """Real values in [low, high], uniform or log-uniform."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low={self.low} and high={self.high} are no range{' for log=true' if self.log else ''}")
        return self

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """The extreme values."""
        return self.low, self.high

    def suggest(self, trial: optuna.Trial, name: str) -> Scalar:
        """The value that the study's sampler draws for ``trial``."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)


class IntRange(Parameter):
    """Whole numbers in [low, high]."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        if not self.low < self.high or (self.log and self.low < 1):
            raise ValueError(f"low={self.low} and high={self.high} are no range{' for log=true' if self.log else ''}")
        return self

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """The extreme values."""
        return self.low, self.high

    def suggest(self, trial: optuna.Trial, name: str) -> Scalar:
        """The value that the study's sampler draws for ``trial``."""
        return trial.suggest_int(name, self.low, self.high, log=self.log)


class Choice(Parameter):
    """One of a few values."""

    type: Literal["choice"]
    values: tuple[Scalar, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Choice:
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"values={list(self.values)} names one twice")
        return self

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """All values."""
        return self.values

    def suggest(self, trial: optuna.Trial, name: str) -> Scalar:
        """The value that the study's sampler draws for ``trial``."""
        return trial.suggest_categorical(name, self.values)


_LOWER_IS_BETTER = ("loss", "validation/loss", "time_total_s")


class Objective(Settings):
    """A reported metric that decides, never one of a test set."""

    metric: str = "validation/macro_auroc"
    mode: Literal["max", "min"] = Field("max", description="By default what is better for the metric")

    @model_validator(mode="before")
    @classmethod
    def _better(cls, values: Any) -> Any:
        if isinstance(values, dict):
            values = {"mode": "min" if values.get("metric") in _LOWER_IS_BETTER else "max", **values}
        return values

    @model_validator(mode="after")
    def _is_better(self) -> Objective:
        if self.metric in _LOWER_IS_BETTER and self.mode == "max":
            raise ValueError(f"objective {self.metric!r}: the lower the better, so mode: max would keep the worst")
        return self


class Halving(Settings):
    """Asynchronous successive halving (ASHA) over images seen, which compares batch sizes fairly.

    With ``reduction`` r and ``rungs`` n, trials are compared after 1/r^n, ..., 1/r of their images; of those that
    came to a rung, the best 1/r go on.
    """

    reduction: int = Field(3, ge=2)
    rungs: int = Field(2, ge=1, le=6)


class Repeats(Settings):
    """The best trials run again with other seeds, so that luck is not crowned."""

    top: int = Field(3, ge=1)
    seeds: int = Field(3, ge=2, description="Runs of each, with seeds that the search did not use")


# What every trial has the same, or what a sweep gives out itself.
_FIXED = {
    **dict.fromkeys(
        ("training.steps", "training.epochs", "training.validate_every", "training.batch_growth"),
        "is the budget, which is the same for all trials so that they compare; set it in overrides",
    ),
    **dict.fromkeys(("name", "storage", "system", "seed", "data.lake"), "is the sweep's, not a trial's"),
}


class Space(Settings):
    """A whole sweep.

    A parameter is a setting (``model.temperature``) or, without a dot in its name, a choice among bundles of settings
    that ``follows`` gives. ``follows`` also brings along what a value needs, such as the batch that a resolution
    leaves memory for.
    """

    preset: str
    overrides: dict[str, Any] = Field(default_factory=dict, description="Settings of every trial, not of the winner")
    parameters: dict[str, Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]] = Field(min_length=1)
    follows: dict[str, dict[Scalar, dict[str, Any]]] = Field(
        default_factory=dict, description="Settings that come with a value: choice -> value -> setting -> value"
    )
    start: tuple[dict[str, Any], ...] = Field((), description="Parameters of trials to begin with; absent: sampled")
    objectives: tuple[Objective, ...] = Field((Objective(),), min_length=1, max_length=3)
    sampler: Literal["tpe", "grid"] = Field("tpe", description="grid takes every combination of choices, once")
    halving: Halving | None = None
    trials: int = Field(16, ge=1, description="Trials in all; grid has as many as there are combinations")
    hours: float | None = Field(None, gt=0.0, description="Wall time after which trials are put off for --resume")
    retries: int = Field(1, ge=0, description="Times that a trial which failed is started again, where it stopped")
    max_concurrent: int = Field(0, ge=0, description="Trials at once; 0 is as many as the cluster's resources hold")
    repeats: Repeats | None = None

    @model_validator(mode="after")
    def _parameters_are_settings(self) -> Space:
        for name in self.parameters:
            if name in _FIXED:
                raise ValueError(f"parameter {name!r} {_FIXED[name]}")
            if "." not in name and name not in self.follows:
                raise ValueError(f"parameter {name!r} names no setting such as model.temperature, nor does follows")
        for name, bundles in self.follows.items():
            # Repeats are a space that varies the seed so.
            for key in sorted({key for bundle in bundles.values() for key in bundle} & _FIXED.keys() - {"seed"}):
                raise ValueError(f"follows.{name}: {key!r} {_FIXED[key]}")
        return self

    @model_validator(mode="after")
    def _follows_choices(self) -> Space:
        for name, bundles in self.follows.items():
            parameter = self.parameters.get(name)
            if not isinstance(parameter, Choice):
                choices = [key for key, other in self.parameters.items() if isinstance(other, Choice)]
                raise ValueError(f"follows: {name!r} is no choice of this sweep: {nearest(name, choices)}")
            for value in bundles:
                if value not in parameter.values:
                    raise ValueError(f"follows.{name}: {value!r} is none of its values {list(parameter.values)}")
            absent = [value for value in parameter.values if value not in bundles]
            if absent and "." not in name:
                raise ValueError(f"follows.{name} says nothing of {absent}")
        return self

    @model_validator(mode="after")
    def _conditions_name_earlier_choices(self) -> Space:
        earlier: dict[str, Choice] = {}
        for name, parameter in self.parameters.items():
            for other, values in parameter.when.items():
                if other not in earlier:
                    raise ValueError(
                        f"parameter {name!r}: when names {other!r}, no choice above it: "
                        f"{nearest(other, list(earlier)) if earlier else 'there is none'}"
                    )
                unknown = [value for value in values if value not in earlier[other].values]
                if unknown or not values:
                    raise ValueError(
                        f"parameter {name!r}: when.{other}={list(values)} is not among {list(earlier[other].values)}"
                    )
            if isinstance(parameter, Choice):
                earlier[name] = parameter
        return self

    @model_validator(mode="after")
    def _start_fits(self) -> Space:
        for number, point in enumerate(self.start):
            for name, value in point.items():
                if name not in self.parameters:
                    raise ValueError(f"start[{number}]: {name!r} is no parameter: {nearest(name, [*self.parameters])}")
                parameter = self.parameters[name]
                if isinstance(parameter, Choice):
                    fits = value in parameter.values
                else:
                    fits = isinstance(value, (int, float)) and parameter.low <= value <= parameter.high
                if not fits:
                    raise ValueError(f"start[{number}]: {name}={value!r} is outside of {list(parameter.ends)}")
        return self

    @model_validator(mode="after")
    def _searches_fit(self) -> Space:
        if len({objective.metric for objective in self.objectives}) < len(self.objectives):
            raise ValueError("objectives: a metric stands there twice")
        if self.halving and len(self.objectives) > 1:
            raise ValueError("halving compares trials by one objective: remove it, or all objectives but one")
        ranges = [name for name, parameter in self.parameters.items() if not isinstance(parameter, Choice)]
        if self.sampler == "grid" and ranges:
            raise ValueError(f"sampler=grid takes choices, and {', '.join(ranges)} is a range: list values of it")
        return self

    def suggest(self, trial: optuna.Trial) -> Parameters:
        """The parameters of ``trial``, drawn in order, those left out whose condition does not hold."""
        chosen: Parameters = {}
        for name, parameter in self.parameters.items():
            if parameter.exists(chosen):
                chosen[name] = parameter.suggest(trial, name)
        return chosen

    def settings(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a trial with the parameters ``chosen``: their own and those that follow."""
        own = {name: value for name, value in chosen.items() if "." in name}
        for name, value in chosen.items():
            own |= self.follows.get(name, {}).get(value, {})
        return own

    def grid(self) -> list[Parameters]:
        """Every combination of choices that conditions allow, once."""
        points: list[Parameters] = [{}]
        for name, parameter in self.parameters.items():
            extended = [
                [{**point, name: value} for value in parameter.ends] if parameter.exists(point) else [point]
                for point in points
            ]
            points = list(itertools.chain.from_iterable(extended))
        return points

    def corners(self) -> Iterator[Parameters]:
        """Parameters that show each end of each range and each choice once, with what its condition asks for."""
        for name, parameter in self.parameters.items():
            for value in parameter.ends:
                yield {**self._granting(name), name: value}

    def _granting(self, name: str) -> Parameters:
        """Choices under which ``name`` exists."""
        needed: Parameters = {}
        for other, values in self.parameters[name].when.items():
            needed |= self._granting(other) | {other: values[0]}
        return needed


def load_space(path: Path) -> Space:
    """Read a space. Raises ConfigError for a missing file or a wrong field."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        raise ConfigError(f"no sweep file {path}; spaces that are shipped are in tune/spaces") from None
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path}: not a sweep: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a sweep is a mapping, found a list")
    return validate(Space, {str(key): value for key, value in values.items()}, where=path.name)
