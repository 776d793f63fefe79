"""From a run folder to a bundle."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from rayzero.alignment import registry
from rayzero.bundle import save_bundle
from rayzero.config import ConfigError, parse_config
from rayzero.storage import open_url
from rayzero.training import manifest
from rayzero.training.checkpoint import load_weights


def export_run(run: str, bundle: str, card: dict[str, Any] | None = None, *, checkpoint: str = "best") -> str:
    """Write a checkpoint of the run folder ``run`` as a bundle at ``bundle``; ``card`` adds to its card.

    ``checkpoint`` is ``best`` (by training.monitor on the validation split; the newest where none was validated),
    ``newest``, or a checkpoint's name. Raises ConfigError when ``run`` is not a run folder or holds no checkpoint
    yet, TrainingError when there is no such checkpoint or it is damaged.
    """
    fs, root = open_url(run)
    if not fs.exists(f"{root}/config.yaml"):
        raise ConfigError(f"{run} is not a run folder: it has no config.yaml")
    stored = manifest.list_stored(fs, root)
    if not stored:
        raise ConfigError(f"run {run} has no checkpoint yet: training.checkpoint_every says when it gets one")
    chosen = manifest.choose(stored, checkpoint)
    config = parse_config(fs.cat_file(f"{root}/config.yaml").decode())
    model = registry.build(config)
    load_weights(model, fs, chosen)
    environment = json.loads(fs.cat_file(f"{root}/environment.json"))
    about = {
        "run": config.name,
        "checkpoint": chosen.name,
        "step": chosen.step,
        "validation_score": chosen.score,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": environment["commit"],
        "data": environment["lake"],
    }
    return save_bundle(bundle, model, config, {**about, **(card or {})})
