"""A pretraining run from its config: checks, run folder, Ray Train, and what came out."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from rayzero import __version__
from rayzero.alignment import registry
from rayzero.config import Config, ConfigError, dump_yaml, override, parse_config
from rayzero.storage import is_url, open_url, write_whole
from rayzero.studies.errors import LakeError
from rayzero.studies.lake import Lake, open_lake
from rayzero.studies.loading import lake_source
from rayzero.studies.study import Split
from rayzero.training.errors import TrainingError, last_line
from rayzero.training.features import training_sources
from rayzero.training.loop import Job, train_worker
from rayzero.training.manifest import SCORE
from rayzero.training.nonfinite import NonFiniteError
from rayzero.training.owner import owned
from rayzero.training.room import find_room
from rayzero.training.run_storage import train_storage
from rayzero.training.timeline import Timeline
from rayzero.training.validation_images import read_validation_images
from rayzero.training.zero_shot import why_absent

# How a run is carried out, not what it computes: what may differ when it is continued.
_MAY_CHANGE = {
    "storage",
    "data.cache",
    *(f"training.{name}" for name in ("workers", "min_workers", "cpus_per_worker", "gpus_per_worker", "zero_stage")),
    *(f"training.{name}" for name in ("keep_checkpoints", "max_failures", "log_every")),
}
_PACKAGES = ("ray", "deepspeed", "torch", "transformers", "pyarrow", "numpy")
_WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: its newest checkpoint and the metrics reported with it."""

    run_folder: str
    checkpoint: ray.train.Checkpoint
    metrics: dict[str, Any]


def run_folder(config: Config) -> str:
    """The folder or URL of the run."""
    return f"{config.storage.rstrip('/')}/{config.name}"


def count_examples(config: Config, lake: Lake) -> int:
    """Training examples of one epoch on ``lake``. Raises LakeError as ``pretrain`` does."""
    return lake_source(lake, "train", config.data, config.vision.resolution, with_text=True).num_rows


def pretrain(
    config: Config, callbacks: Sequence[ray.train.UserCallback] = (), *, profile: bool = False
) -> TrainingResult:
    """Train ``config``, or continue the run of that name where it stopped. Needs a Ray cluster.

    ``profile`` writes a trace of three steps to ``profile/trace.json`` in the run folder.

    Raises ConfigError or LakeError before anything starts when a setting, the lake or an encoder is unusable;
    TrainingError when another process trains this run, when no nodes come for it, and when training fails more often
    than training.max_failures allows; NonFiniteError, a TrainingError, when a loss or a gradient is no number: trying
    again would not help.
    """
    config = absolute(registry.resolve(config))
    lake = open_training_lake(config)
    check_monitor(config, lake)
    _check_same_run(config, lake)
    find_room(config)
    with owned(run_folder(config)):
        return _trained(config, lake, callbacks, profile=profile)


def _trained(
    config: Config, lake: Lake, callbacks: Sequence[ray.train.UserCallback], *, profile: bool
) -> TrainingResult:
    splits: list[Split] = ["train", "validation"] if "validation" in lake.splits else ["train"]
    sources = training_sources(config, lake, splits)
    job = Job(
        config=config,
        train=sources["train"],
        validation=sources.get("validation"),
        log_dir=f"{run_folder(config)}/tensorboard",
        profile=f"{run_folder(config)}/profile" if profile else None,
    )
    _write_run_folder(config, lake)
    # Checks the run's length against the data before any worker starts.
    steps = Timeline(config.training, job.train.num_rows).steps
    print(f"run {config.name!r}: {steps} steps over {job.train.num_rows} training examples", flush=True)
    return _outcome(config, _trainer(config, job, callbacks))


def _outcome(config: Config, trainer: TorchTrainer) -> TrainingResult:
    """Train, and say in a sentence what went wrong."""
    again = "The same command continues it from its newest checkpoint"
    try:
        result = trainer.fit()
    except ray.train.WorkerGroupError as error:
        causes = "; ".join(sorted({last_line(failure) for failure in error.worker_failures.values()}))
        raise TrainingError(f"run {config.name!r} failed: {causes}. {again}") from error
    except ray.train.ControllerError as error:
        cause, workers = error.controller_failure, config.training.workers
        if isinstance(cause, WorkerGroupStartupTimeoutError | WorkerGroupStartupFailedError):
            raise TrainingError(
                f"run {config.name!r} failed: the cluster has no room for its {workers} workers any more. {again}, on "
                "as many machines, or with a lower training.workers; training.min_workers lets a run go on by itself"
            ) from error
        raise TrainingError(f"run {config.name!r} failed: {last_line(cause)}. {again}") from error
    except TrainingFailedError as error:
        raise TrainingError(f"run {config.name!r} failed: {last_line(error)}. {again}") from error
    problem = result.return_value  # type: ignore[attr-defined]  # typed as Train v1's
    if problem:
        raise NonFiniteError(f"run {config.name!r} stopped: {problem}")
    if result.checkpoint is None:
        raise TrainingError(f"run {config.name!r} ended without a checkpoint: {result.error}")
    return TrainingResult(run_folder(config), result.checkpoint, dict(result.metrics or {}))


def _trainer(config: Config, job: Job, callbacks: Sequence[ray.train.UserCallback]) -> TorchTrainer:
    training = config.training
    resources = {"CPU": training.cpus_per_worker}
    if training.gpus_per_worker:
        resources["GPU"] = training.gpus_per_worker
    filesystem, path = train_storage(config.storage)
    workers = (training.min_workers, training.workers) if training.min_workers else training.workers
    return TorchTrainer(
        # Bound, as Ray's controller would load a config, and with it DeepSpeed and the encoders: seconds of a start.
        partial(train_worker, job),  # type: ignore[arg-type]  # typed as Train v1's, which return nothing
        torch_config=TorchConfig(backend="nccl" if training.gpus_per_worker else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]  # typed as Train v1's
            use_gpu=bool(training.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as Train v1's
            name=config.name,
            storage_path=path,
            storage_filesystem=filesystem,
            # The default retries a controller that cannot start for ever.
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]  # typed as Train v1's
                max_failures=training.max_failures, controller_failure_limit=3
            ),
            # And the newest, always.
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=training.keep_checkpoints, checkpoint_score_attribute=SCORE
            ),
            callbacks=list(callbacks),  # type: ignore[arg-type]  # typed as Train v1's
            # Ray leaves a machine's GPUs visible to workers that have none of them.
            worker_runtime_env=None if training.gpus_per_worker else {"env_vars": _WITHOUT_GPU},
        ),
    )


def absolute(config: Config) -> Config:
    """``config`` with its local folders made absolute: workers run in directories of their own."""
    folders = {"storage": config.storage, "data.cache": config.data.cache, "data.lake": config.data.lake}
    folders |= {f"model.{name}": config.model.get(name, "") for name in registry.find_system(config).folders}
    local = {key: str(Path(value).resolve()) for key, value in folders.items() if value and not is_url(value)}
    for key, encoder in (("vision.encoder", config.vision.encoder), ("text.encoder", config.text.encoder)):
        if Path(encoder).is_dir():
            local[key] = str(Path(encoder).resolve())
    return override(config, local)


def open_training_lake(config: Config) -> Lake:
    """The lake of ``config``. Raises ConfigError where it names none, LakeError for one without a train split."""
    if not config.data.lake:
        raise ConfigError("data.lake is empty: give the folder or URL of a lake written by jobs.ingest")
    lake = open_lake(config.data.lake)
    if "train" not in lake.splits:
        raise LakeError(f"{lake.url}: no train split (it has {', '.join(lake.splits)})")
    return lake


def check_monitor(config: Config, lake: Lake) -> None:
    """What follows validation needs a figure: one that is never a number would count as no progress.

    Raises ConfigError when the system has no figure of that name, LakeError when the lake has nothing to compute it of.
    """
    training = config.training
    answers = registry.find_system(config).answers
    follows = {
        "training.schedule=plateau": training.schedule == "plateau",
        "training.early_stopping": training.early_stopping > 0,
        # The default stays without a figure where there is none; who names another wants that.
        f"training.monitor={training.monitor}": training.monitor not in ("macro_auroc", "loss"),
    }
    what = next((name for name, wanted in follows.items() if wanted), None)
    if what is None:
        return
    if training.monitor not in ("macro_auroc", "loss") and not answers:
        raise ConfigError(
            f"training.monitor={training.monitor}: system {config.system!r} answers no queries, so it has no such "
            "figure; set training.monitor=loss"
        )
    if "validation" not in lake.splits:
        raise LakeError(f"{lake.url}: {what} needs a validation split")
    if training.monitor == "loss" or not answers:
        return
    problem = absent_figure(training.monitor, config, lake)
    if problem:
        raise LakeError(
            f"{lake.url}: {what} follows training.monitor={training.monitor}, and {problem}, or set "
            "training.monitor=loss"
        )


def absent_figure(figure: str, config: Config, lake: Lake) -> str | None:
    """Why validation on ``lake`` cannot give the zero-shot ``figure``, and the remedy; None where it can."""
    return why_absent(figure, read_validation_images(lake.row_groups(["validation"]), config.data), config)


def _check_same_run(config: Config, lake: Lake) -> None:
    """A run is continued with the settings and the data that it began with."""
    fs, root = open_url(run_folder(config))
    if not fs.exists(f"{root}/config.yaml"):
        return
    try:
        before = parse_config(fs.cat_file(f"{root}/config.yaml").decode())
    except ConfigError as error:
        raise ConfigError(f"{root}/config.yaml: {error}; choose another name=...") from None
    changed = changed_settings(before, config)
    if changed:
        raise ConfigError(
            f"run {config.name!r} in {config.storage} began with other settings ({', '.join(changed)}); "
            "choose another name=..., or repeat the old settings to continue it"
        )
    if not fs.exists(f"{root}/environment.json"):
        return  # killed before its first step
    began = json.loads(fs.cat_file(f"{root}/environment.json"))["lake"]["fingerprint"]
    if began != lake.fingerprint:
        raise ConfigError(
            f"run {config.name!r} in {config.storage} began on another version of the lake {lake.url}; "
            "choose another name=... to train on this one"
        )


def _write_run_folder(config: Config, lake: Lake) -> None:
    fs, root = open_url(run_folder(config))
    fs.makedirs(root, exist_ok=True)
    write_whole(fs, f"{root}/config.yaml", dump_yaml(config).encode())
    write_whole(fs, f"{root}/environment.json", json.dumps(environment(lake), indent=2).encode())


def environment(lake: Lake) -> dict[str, Any]:
    """Versions, hardware and data behind a run."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {"rayzero": __version__, **{name: version(name) for name in _PACKAGES}},
        "cluster": {k: v for k, v in ray.cluster_resources().items() if not k.startswith("node:")},
        "processor": platform.processor() or platform.machine(),
        "lake": {"url": lake.url, "fingerprint": lake.fingerprint},
    }


def commit() -> str:
    """The git commit of the working directory, or ``unknown`` outside a checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def changed_settings(before: Config, now: Config) -> list[str]:
    """Names of the settings that differ and decide what is computed."""
    found = _differences(before.model_dump(mode="json"), now.model_dump(mode="json"))
    return [key for key in found if key not in _MAY_CHANGE]


def _differences(left: Any, right: Any, prefix: str = "") -> list[str]:
    if isinstance(left, dict) and isinstance(right, dict):
        keys = sorted(left.keys() | right.keys())
        return [d for key in keys for d in _differences(left.get(key), right.get(key), f"{prefix}.{key}".lstrip("."))]
    return [] if left == right else [prefix]
