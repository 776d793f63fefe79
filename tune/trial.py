"""One trial: a Ray Train run of its own, with as many workers as its settings say, whose reports reach Tune."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from rayzero.config import Config, override
from rayzero.storage import open_url
from rayzero.training.features import cache_root
from rayzero.training.nonfinite import NonFiniteError
from rayzero.training.run import pretrain, run_folder
from tune.budget import Budget
from tune.space import Space
from tune.study import FINISHED, IMAGES_PER_SECOND, NUMBER


def trial_config(
    space: Space, base: Config, budget: Budget, parameters: Mapping[str, Any], *, number: int, folder: str
) -> Config:
    """The settings of trial ``number``, whose run folder is in ``folder``; features are shared with the whole sweep."""
    chosen = {name: value for name, value in parameters.items() if name != NUMBER}
    config = override(base, space.settings(chosen))
    # By its number in the study, so that a trial that is started again goes on where it stopped.
    changes = {"name": f"trial-{number:04d}", "storage": folder, "data.cache": cache_root(base)}
    return override(config, {**budget.settings(config), **changes})


def run_trial(parameters: dict[str, Any], *, space: Space, base: Config, budget: Budget, folder: str) -> None:
    """Train one trial to its end and report it, as a trainable of Tune."""
    config = trial_config(space, base, budget, parameters, number=parameters[NUMBER], folder=folder)
    try:
        result = pretrain(config, callbacks=[TuneReportCallback()])
    except NonFiniteError as error:
        # What raises is started again by Tune, and the same steps would end the same way. A trial that is finished
        # without figures has failed for good.
        print(error, flush=True)
        tune.report({"run_folder": run_folder(config), "error": str(error), FINISHED: True})
        return
    # Once more: a run that a killed driver had seen to its end reports nothing when it is taken up again.
    speed = images_per_second(result.run_folder)
    extra = {} if speed is None else {IMAGES_PER_SECOND: speed}
    tune.report({**result.metrics, **extra, "run_folder": result.run_folder, FINISHED: True})


def images_per_second(run_folder: str) -> float | None:
    """Training speed of a run: the median over the intervals that it logged, without the first, which warms up."""
    with tempfile.TemporaryDirectory() as local:
        fs, root = open_url(f"{run_folder}/tensorboard")
        for path in fs.glob(f"{root}/events*"):
            fs.get_file(path, f"{local}/{Path(path).name}")
        events = EventAccumulator(local)
        events.Reload()
        name = "train/images_per_second"
        if name not in events.Tags()["scalars"]:
            return None
        speeds = [float(event.value) for event in events.Scalars(name)]
    return statistics.median(speeds[1:] or speeds)
