"""From a run folder to a bundle."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow.fs
import ray.train

from rayzero.alignment import registry
from rayzero.bundle import save_bundle
from rayzero.config import ConfigError, parse_config
from rayzero.storage import open_url
from rayzero.training.checkpoint import load_weights


def export_run(run: str, bundle: str, card: dict[str, Any] | None = None) -> str:
    """Write the newest checkpoint of the run folder ``run`` as a bundle at ``bundle``; ``card`` adds to its card.

    Raises ConfigError when ``run`` is not a run folder or holds no checkpoint yet.
    """
    fs, root = open_url(run)
    if not fs.exists(f"{root}/config.yaml"):
        raise ConfigError(f"{run} is not a run folder: it has no config.yaml")
    folders = sorted(path for path in fs.ls(root, detail=False) if path.rsplit("/", 1)[-1].startswith("checkpoint-"))
    # A folder without files is what a kill in the middle of an upload leaves.
    folders = [folder for folder in folders if fs.find(folder)]
    if not folders:
        raise ConfigError(f"run {run} has no checkpoint yet: training.checkpoint_every says when it gets one")
    config = parse_config(fs.cat_file(f"{root}/config.yaml").decode())
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    model = registry.build(config)
    load_weights(model, ray.train.Checkpoint(folders[-1], filesystem))
    environment = json.loads(fs.cat_file(f"{root}/environment.json"))
    about = {
        "run": config.name,
        "checkpoint": folders[-1].rsplit("/", 1)[-1],
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": environment["commit"],
        "data": environment["lake"],
    }
    return save_bundle(bundle, model, config, {**about, **(card or {})})
