"""What an operator changes while the server runs: ``user_config`` of the deployment ``web``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rayzero.config import ConfigError, nearest
from serve.engine import Description
from serve.problems import Problem

logger = logging.getLogger("ray.serve")

VOCABULARY = "vocabulary"


class LiveSettings(BaseModel):
    """Lists of findings kept by name, and thresholds on sigmoid(map) by model in place of the models' own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_sets: dict[str, list[str]] = {}
    thresholds: dict[str, Annotated[float, Field(gt=0.0, lt=1.0)]] = {}


class Live:
    """The settings in force; ``replace`` puts others in their place between two requests."""

    def __init__(self, settings: LiveSettings | None = None) -> None:
        self._settings = settings or LiveSettings()
        self._loaded = False

    def reload(self, user_config: dict[str, Any], models: Sequence[str]) -> None:
        """From now on ``user_config`` holds, about ``models``. Raises ConfigError for one that is wrong at the start.

        Later the log says what is wrong, and what was set before goes on to hold: Serve would stop this replica for
        an error, and every one after it.
        """
        try:
            self.replace(_read(user_config, models))
        except ConfigError as error:
            if not self._loaded:
                raise
            logger.error("%s; what was set before goes on to hold", error)
        self._loaded = True

    def replace(self, settings: LiveSettings) -> None:
        """From now on ``settings`` holds."""
        self._settings = settings

    @property
    def prompt_sets(self) -> dict[str, list[str]]:
        """Findings by the name of their list."""
        return self._settings.prompt_sets

    @property
    def thresholds(self) -> dict[str, float]:
        """Thresholds by model."""
        return self._settings.thresholds

    def prompt_set(self, name: str, about: Description) -> list[str]:
        """The findings of that list; ``vocabulary`` is the model's own. Raises Problem (404)."""
        sets = {VOCABULARY: list(about.card.get("vocabulary", [])), **self._settings.prompt_sets}
        if not sets.get(name):
            names = [key for key, findings in sets.items() if findings]
            detail = nearest(name, names).capitalize() if names else "This server keeps no lists of findings."
            raise Problem(404, "unknown-prompt-set", detail, field="prompt_set")
        return sets[name]


def _read(user_config: dict[str, Any], models: Sequence[str]) -> LiveSettings:
    where = "user_config of the deployment web"
    try:
        settings = LiveSettings.model_validate(user_config)
    except ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    for name in sorted(settings.thresholds.keys() - set(models)):
        raise ConfigError(f"{where}: thresholds: there is no model {name!r}; {nearest(name, models)}")
    return settings
