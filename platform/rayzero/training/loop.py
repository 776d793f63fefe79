"""The training loop of one worker. Ray Train starts it on every worker with the run's settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import deepspeed
import pyarrow as pa
import ray.train
import ray.train.torch
import torch

from rayzero.alignment import registry
from rayzero.config import Config
from rayzero.studies.loading import Source, stream
from rayzero.training import checkpoint
from rayzero.training import engine as engines
from rayzero.training.batches import collate
from rayzero.training.monitor import Monitor
from rayzero.training.validation import validate


@dataclass(frozen=True)
class Job:
    """What a worker needs: the resolved config, where examples come from, and where to log."""

    config: Config
    train: Source
    validation: Source | None
    log_dir: str


class NonFiniteLoss(RuntimeError):
    """The loss or the gradient stopped being a number; training stops before the damage is saved."""


def train_worker(settings: dict[str, Job]) -> None:
    """Train from the newest checkpoint (or the start) to the last step."""
    job = settings["job"]
    config, context = job.config, ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(max(1, round(config.training.cpus_per_worker)))
    # The same seed builds the same weights on every worker; dropout then differs by rank.
    torch.manual_seed(config.seed)
    model = registry.build(config)
    engine = engines.build_engine(model, config)
    state = checkpoint.restore(engine)
    monitor = Monitor(config.training, job.log_dir, rank=rank, first_step=state.step)
    batches = _batches(job, state.step, rank, context.get_world_size())
    if state.step >= config.training.steps and rank == 0:
        print(f"run {config.name!r} is already complete at step {state.step}", flush=True)
    while state.step < config.training.steps:
        with monitor.waiting():
            examples = next(batches)
        values = _step(engine, config, examples, state)
        state.step += 1
        state.images_seen += config.training.batch_size
        monitor.step(state.step, values)
        _milestones(engine, job, state, monitor, values)
    monitor.close()


def _batches(job: Job, first: int, rank: int, world_size: int) -> Iterator[pa.Table]:
    training = job.config.training
    return stream(
        job.train,
        rank=rank,
        world_size=world_size,
        seed=job.config.seed,
        batch_size=training.batch_per_worker,
        first_batch=first,
        num_batches=training.steps - first,
    )


def _step(
    engine: deepspeed.DeepSpeedEngine, config: Config, examples: pa.Table, state: checkpoint.LoopState
) -> dict[str, float]:
    model = engine.module
    # Dropout is a function of step and rank, so that a resumed run draws what the uninterrupted one would have.
    context = ray.train.get_context()
    torch.manual_seed(hash((config.seed, state.step, context.get_world_rank())))
    batch = collate(
        examples,
        model.text,
        config.data,
        cached=config.vision.cache_features,
        seed=config.seed,
        step=state.step,
    )
    rate = engines.learning_rate(config.training, state.step)
    engines.set_learning_rate(engine, rate)
    losses = engine(batch.to(engine.device))
    values = {name: float(value.detach()) for name, value in losses.items()}
    # The loss is that of the global batch, so every process sees the same value and stops together.
    if not math.isfinite(values["loss"]):
        studies = ", ".join(examples.column("study_id").to_pylist()[:8])
        raise NonFiniteLoss(f"loss is {values} at step {state.step + 1}; first studies of the batch: {studies}")
    engine.backward(losses["loss"])
    engine.step()
    norm = engine.get_global_grad_norm()
    return {**values, "lr": rate, **({"grad_norm": float(norm)} if norm is not None else {})}


def _milestones(
    engine: deepspeed.DeepSpeedEngine, job: Job, state: checkpoint.LoopState, monitor: Monitor, values: dict[str, float]
) -> None:
    """Validate, report and save when the step calls for it."""
    training = job.config.training
    last = state.step == training.steps
    metrics: dict[str, float] = {**values, "step": state.step, "images_seen": state.images_seen}
    validates = job.validation is not None and (last or _every(training.validate_every, state.step))
    if validates:
        metrics.update(_validate(engine, job))
        monitor.scalars(state.step, {name: v for name, v in metrics.items() if name.startswith("validation/")})
        state.best_metric = max(state.best_metric, metrics["validation/macro_auroc"])
        if ray.train.get_context().get_world_rank() == 0:
            print(f"step {state.step}: validation macro AUROC {metrics['validation/macro_auroc']:.4f}", flush=True)
    if last or _every(training.checkpoint_every, state.step):
        checkpoint.save(engine, state, metrics)
    elif validates:
        ray.train.report(metrics)


def _validate(engine: deepspeed.DeepSpeedEngine, job: Job) -> dict[str, float]:
    assert job.validation is not None
    context = ray.train.get_context()
    stage3 = job.config.training.zero_stage == 3
    gathered = deepspeed.zero.GatheredParameters(list(engine.module.parameters())) if stage3 else nullcontext()
    with gathered:
        return validate(
            engine.module,
            job.validation,
            job.config,
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
        )


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
