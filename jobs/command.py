"""What every command shares: a Ray connection, presets by name, and errors as one clear message."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from rayzero.bundle import BundleError
from rayzero.config import Config, ConfigError, load_config, nearest
from rayzero.evaluation.errors import EvaluationError
from rayzero.studies.errors import CorpusError, LakeError

PRESETS = Path(__file__).parent / "presets"

# For workers: prints once instead of twice, and no warning per fork of a tokenizer.
_WORKER_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


def connect() -> str:
    """Join the cluster that runs this job, or the one on this machine, or start one here; returns its dashboard."""
    environment = {"env_vars": _WORKER_ENVIRONMENT}
    context = ray.init(logging_level=logging.WARNING, ignore_reinit_error=True, runtime_env=environment)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return f"http://{context.dashboard_url}"


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


def main(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> None:
    """Run ``command``; a mistake of the user's ends it with one message and exit code 2."""
    try:
        command(sys.argv[1:] if arguments is None else arguments)
    except (BundleError, ConfigError, CorpusError, EvaluationError, LakeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
