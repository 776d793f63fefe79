"""Systems by name. A system is one file of this package that registers its class; nothing else lists them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import rayzero.alignment
from rayzero.alignment.base import AlignmentModel, PretrainingModel
from rayzero.config import Config, ConfigError, Input, Settings, nearest, validate


@dataclass(frozen=True)
class System:
    """A registered system: the settings it reads from ``model.*`` and what builds it from a run's config.

    ``inputs`` are the values of ``data.input`` that it reads. ``needs_pixels``: its loss reads the images themselves,
    beside cached features. ``answers``: it is an ``AlignmentModel``, and answers queries. ``folders`` are the settings
    of ``model`` that name a folder or URL.
    """

    settings: type[Settings]
    build: Callable[[Config], PretrainingModel]
    inputs: tuple[Input, ...] = ("radiograph",)
    needs_pixels: bool = False
    answers: bool = True
    folders: tuple[str, ...] = ()


_SYSTEMS: dict[str, System] = {}


def register(name: str, system: System) -> None:
    """Make a system known under ``name``. Raises ValueError when the name is taken."""
    if name in _SYSTEMS:
        raise ValueError(f"two systems are registered as {name!r}")
    _SYSTEMS[name] = system


def system_names() -> list[str]:
    """The names of all systems."""
    _discover()
    return sorted(_SYSTEMS)


def find_system(config: Config) -> System:
    """The system that ``config`` names. Raises ConfigError for an unknown one, with the nearest name."""
    _discover()
    try:
        return _SYSTEMS[config.system]
    except KeyError:
        raise ConfigError(f"unknown system={config.system!r}: {nearest(config.system, list(_SYSTEMS))}") from None


def resolve(config: Config) -> Config:
    """``config`` with ``model`` checked against its system and filled with that system's defaults.

    Raises ConfigError for an unknown system, an unknown ``model.*`` setting, or an input that it does not read.
    """
    system = find_system(config)
    if config.data.input not in system.inputs:
        raise ConfigError(
            f"data.input={config.data.input}: {config.system} reads {' or '.join(system.inputs)}; set data.input so"
        )
    settings = validate(system.settings, config.model, where="model")
    return config.model_copy(update={"model": settings.model_dump(mode="json")})


def build(config: Config) -> PretrainingModel:
    """The model that ``config`` describes, its encoders loaded."""
    return find_system(config).build(resolve(config))


def build_zero_shot(config: Config) -> AlignmentModel:
    """``build`` for a system that answers queries. Raises ConfigError for one that only pretrains."""
    model = build(config)
    if not isinstance(model, AlignmentModel):
        raise ConfigError(f"system={config.system!r} pretrains encoders and answers no queries; align it with alta")
    return model


def _discover() -> None:
    for module in pkgutil.iter_modules(rayzero.alignment.__path__):
        importlib.import_module(f"rayzero.alignment.{module.name}")
