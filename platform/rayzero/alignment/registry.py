"""Systems by name. A system is one file of this package that registers its class; nothing else lists them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import rayzero.alignment
from rayzero.alignment.base import AlignmentModel
from rayzero.config import Config, ConfigError, Settings, nearest, validate


@dataclass(frozen=True)
class System:
    """A registered system: the settings it reads from ``model.*`` and what builds it from a run's config."""

    settings: type[Settings]
    build: Callable[[Config], AlignmentModel]


_SYSTEMS: dict[str, System] = {}


def register(name: str, settings: type[Settings], build: Callable[[Config], AlignmentModel]) -> None:
    """Make a system known under ``name``. Raises ValueError when the name is taken."""
    if name in _SYSTEMS:
        raise ValueError(f"two systems are registered as {name!r}")
    _SYSTEMS[name] = System(settings, build)


def system_names() -> list[str]:
    """The names of all systems."""
    _discover()
    return sorted(_SYSTEMS)


def resolve(config: Config) -> Config:
    """``config`` with ``model`` checked against its system and filled with that system's defaults.

    Raises ConfigError for an unknown system or an unknown ``model.*`` setting.
    """
    settings = validate(_system(config).settings, config.model, where="model")
    return config.model_copy(update={"model": settings.model_dump(mode="json")})


def build(config: Config) -> AlignmentModel:
    """The model that ``config`` describes, its encoders loaded."""
    return _system(config).build(resolve(config))


def _system(config: Config) -> System:
    _discover()
    try:
        return _SYSTEMS[config.system]
    except KeyError:
        raise ConfigError(f"unknown system={config.system!r}: {nearest(config.system, list(_SYSTEMS))}") from None


def _discover() -> None:
    for module in pkgutil.iter_modules(rayzero.alignment.__path__):
        importlib.import_module(f"rayzero.alignment.{module.name}")
