"""A sweep as a YAML file: a preset, fixed overrides, the settings to search, the objective and the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, model_validator
from yaml import YAMLError

from rayzero.config import ConfigError, Settings, validate


class FloatRange(Settings):
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

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """For Optuna."""
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log)


class IntRange(Settings):
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

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """For Optuna."""
        return optuna.distributions.IntDistribution(self.low, self.high, log=self.log)


class Choice(Settings):
    """One of a few values."""

    type: Literal["choice"]
    values: tuple[str | int | float | bool | None, ...] = Field(min_length=1)

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """For Optuna."""
        return optuna.distributions.CategoricalDistribution(self.values)


class Objective(Settings):
    """The reported metric that decides, never one of a test set."""

    metric: str = "validation/macro_auroc"
    mode: Literal["max", "min"] = "max"


class Space(Settings):
    """A whole sweep."""

    preset: str
    overrides: dict[str, Any] = Field(default_factory=dict)
    parameters: dict[str, Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]] = Field(min_length=1)
    objective: Objective = Objective()
    trials: int = Field(16, ge=1)
    max_concurrent: int = Field(0, ge=0, description="Trials at once; 0 is as many as the cluster's resources hold")


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
