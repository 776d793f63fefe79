"""The training loop of one worker. Ray Train starts it on every worker with the run's settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

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
from rayzero.training.gradient_cache import cached_backward
from rayzero.training.monitor import Monitor
from rayzero.training.timeline import Timeline
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
    timeline = Timeline(config.training, job.train.num_rows)
    monitor = Monitor(config.training, job.log_dir, rank=rank, first_step=state.step, steps=timeline.steps)
    batches = _batches(job, timeline, state.step, rank, context.get_world_size())
    if rank == 0 and (state.stopped or state.step >= timeline.steps):
        print(f"run {config.name!r} is already complete at step {state.step}", flush=True)
    while state.step < timeline.steps and not state.stopped:
        with monitor.waiting():
            examples = next(batches)
        values = _step(engine, config, timeline, examples, state)
        images = timeline.batch_size(state.step)
        state.step += 1
        state.images_seen += images
        monitor.step(state.step, images, values)
        _milestones(engine, job, timeline, state, monitor, values)
    monitor.close()


def _batches(job: Job, timeline: Timeline, first: int, rank: int, world_size: int) -> Iterator[pa.Table]:
    return stream(
        job.train,
        rank=rank,
        world_size=world_size,
        seed=job.config.seed,
        skip=timeline.images_before(first) // world_size,
        sizes=[timeline.batch_size(step) // world_size for step in range(first, timeline.steps)],
    )


def _step(
    engine: deepspeed.DeepSpeedEngine,
    config: Config,
    timeline: Timeline,
    examples: pa.Table,
    state: checkpoint.LoopState,
) -> dict[str, float]:
    # Dropout is a function of step and rank, so that a resumed run draws what the uninterrupted one would have.
    torch.manual_seed(hash((config.seed, state.step, ray.train.get_context().get_world_rank())))
    batch = collate(
        examples,
        engine.module.text,
        config.data,
        cached=config.vision.cache_features,
        seed=config.seed,
        step=state.step,
    ).to(engine.device)
    rate = timeline.learning_rate(state.step) * state.progress.rate_scale
    engines.set_learning_rate(engine, rate)
    if config.training.chunks == 1:
        losses = engine(batch)
        values = _finite(losses, examples, state)
        engine.backward(losses["loss"])
    else:
        backward = partial(engines.backward, engine)
        values = _finite(cached_backward(engine, backward, batch, config.training.chunks), examples, state)
    engine.step()
    norm = engine.get_global_grad_norm()
    return {**values, "lr": rate, **({"grad_norm": float(norm)} if norm is not None else {})}


def _finite(losses: dict[str, torch.Tensor], examples: pa.Table, state: checkpoint.LoopState) -> dict[str, float]:
    values = {name: float(value.detach()) for name, value in losses.items()}
    # The loss is that of the global batch, so every process sees the same value and stops together.
    if not math.isfinite(values["loss"]):
        studies = ", ".join(examples.column("study_id").to_pylist()[:8])
        raise NonFiniteLoss(f"loss is {values} at step {state.step + 1}; first studies of the batch: {studies}")
    return values


def _milestones(
    engine: deepspeed.DeepSpeedEngine,
    job: Job,
    timeline: Timeline,
    state: checkpoint.LoopState,
    monitor: Monitor,
    values: dict[str, float],
) -> None:
    """Validate, report and save when the step calls for it."""
    training = job.config.training
    last = state.step == timeline.steps
    metrics: dict[str, float] = {**values, "step": state.step, "images_seen": state.images_seen}
    due = _every(training.validate_every, state.step) if training.validate_every else timeline.ends_epoch(state.step)
    if (due or last) and job.validation is not None:
        figures = _validate(engine, job)
        metrics.update(figures)
        monitor.scalars(state.step, figures)
        state.progress.update(figures, training)
        state.stopped = state.progress.exhausted(training)
        if ray.train.get_context().get_world_rank() == 0:
            shown = "  ".join(f"{name.removeprefix('validation/')} {value:.4f}" for name, value in figures.items())
            print(f"step {state.step}: validation {shown}{'  stopping early' * state.stopped}", flush=True)
    if last or state.stopped or (_every(training.checkpoint_every, state.step) if training.checkpoint_every else due):
        checkpoint.save(engine, state, metrics)
    elif due:
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
