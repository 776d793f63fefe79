"""What an operator changes while the server runs: ``user_config`` of the deployment ``web``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rayzero.config import nearest
from serve.engine import Description
from serve.problems import Problem

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
