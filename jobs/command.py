"""What every command shares: a Ray connection, presets by name, and errors as one clear message."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from rayzero.bundle import BundleError
from rayzero.cluster import join
from rayzero.config import Config, ConfigError, load_config, nearest
from rayzero.evaluation.errors import EvaluationError
from rayzero.index import SearchIndexError
from rayzero.reports.extraction.base import ExtractionError
from rayzero.studies.errors import CorpusError, LakeError
from rayzero.training.errors import TrainingError

PRESETS = Path(__file__).parent / "presets"

# What names the mistake and the remedy: its message is all that a user needs.
_EXPLAINED = (
    BundleError,
    ConfigError,
    ConnectionError,
    CorpusError,
    EvaluationError,
    ExtractionError,
    LakeError,
    SearchIndexError,
    TrainingError,
)

# For workers: prints once instead of twice, and no warning per fork of a tokenizer.
_WORKER_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


def connect() -> str:
    """Join this process's cluster (see rayzero.cluster), quietly; returns its dashboard."""
    dashboard = join(logging_level=logging.WARNING, runtime_env={"env_vars": _WORKER_ENVIRONMENT})
    ray.data.DataContext.get_current().enable_progress_bars = False
    return dashboard


def preset_config(preset: str | None, overrides: Sequence[str]) -> Config:
    """The config of a shipped preset (by name) or a YAML file (by path), with dotted overrides.

    Raises ConfigError for an unknown preset, with the nearest name.
    """
    if preset is None:
        return load_config(None, overrides)
    if preset.endswith((".yaml", ".yml")):
        return load_config(Path(preset), overrides)
    names = preset_names()
    if preset not in names:
        raise ConfigError(f"unknown preset {preset!r}: {nearest(preset, names)}; or give the path of a YAML file")
    return load_config(PRESETS / f"{preset}.yaml", overrides)


def preset_names() -> list[str]:
    """The presets that are shipped."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argument's type: a whole number from ``low`` up to ``high``."""

    def parse(text: str) -> int:
        value = int(text) if text.lstrip("-").isdigit() else low - 1
        if value < low or (high is not None and value > high):
            limits = f"from {low} up" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return value

    return parse


def main(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> None:
    """Run ``command``; a mistake of the user's ends it with one message and exit code 2."""
    try:
        command(sys.argv[1:] if arguments is None else arguments)
    except _EXPLAINED as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
