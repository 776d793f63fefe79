"""The training loop of one worker. Ray Train starts it on every worker with the run's settings."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import deepspeed
import pyarrow as pa
import ray.train
import ray.train.torch
import torch

from rayzero.alignment import registry
from rayzero.alignment.base import AlignmentModel, Batch, PretrainingModel
from rayzero.config import Config, override
from rayzero.studies.loading import Source, read_examples, stream
from rayzero.training import engine as engines
from rayzero.training.ahead import ahead
from rayzero.training.average import Average
from rayzero.training.batches import collate
from rayzero.training.checkpoint import Checkpoints, LoopState
from rayzero.training.gradient_cache import cached_backward
from rayzero.training.manifest import SCORE
from rayzero.training.maps import sample_maps
from rayzero.training.monitor import Monitor
from rayzero.training.nonfinite import NonFiniteError, examined, guard
from rayzero.training.profile import Profile
from rayzero.training.progress import score
from rayzero.training.throughput import model_flops
from rayzero.training.timeline import Timeline
from rayzero.training.validation import alone, autocast, validate


@dataclass(frozen=True)
class Job:
    """What a worker needs: the resolved config, where examples come from, where to log, and whether to profile."""

    config: Config
    train: Source
    validation: Source | None
    log_dir: str
    profile: str | None = None


def train_worker(job: Job) -> str | None:
    """Train from the newest checkpoint (or the start) to the last step.

    Returns why training stopped where a value was no number, for the driver to raise: an error raised here would be
    taken for a failure of this worker, and the same steps be taken again.
    """
    torch.set_num_threads(max(1, round(job.config.training.cpus_per_worker)))
    worker = _Worker(job)
    stopped = None
    try:
        worker.run()
    except NonFiniteError as error:
        stopped = str(error)
    worker.monitor.close()
    return stopped


class _Worker:
    """What one worker holds while it trains."""

    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        stage = job.config.training.stage_of(self.world_size)
        self.job, self.config = job, override(job.config, {"training.zero_stage": stage})
        self.training = self.config.training
        # The same seed builds the same weights on every worker; dropout then differs by rank.
        torch.manual_seed(self.config.seed)
        model = registry.build(self.config)
        self.checkpoints = Checkpoints(self.training.zero_stage)
        found = self.checkpoints.find(model)
        flops = None
        # A share of a peak is of interest where the peak is known.
        if torch.cuda.is_available():
            flops = self._flops_per_image(model)
            # What the count took is neither the run's nor its peak.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.engine = engines.build_engine(model, self.config)
        self.average = Average(model, self.training.ema) if self.training.ema else None
        self.state = found.load(self.engine, self.average) if found else LoopState()
        self.checkpoints.discard()
        self.timeline = Timeline(self.training, job.train.num_rows)
        self.monitor = Monitor(
            self.config,
            job.log_dir,
            rank=self.rank,
            world_size=self.world_size,
            first_step=self.state.step,
            steps=self.timeline.steps,
            flops_per_image=flops,
        )

    def run(self) -> None:
        """Take the steps that are left."""
        state, steps = self.state, self.timeline.steps
        if self.rank == 0 and (state.stopped or state.step >= steps):
            print(f"run {self.config.name!r} is already complete at step {state.step}", flush=True)
        batches = self._batches()
        with Profile(self.job.profile if self.rank == 0 else None) as profile:
            while state.step < steps and not state.stopped:
                with self.monitor.waiting():
                    examples, batch = next(batches)
                values = self._step(examples, batch)
                images = self.timeline.batch_size(state.step)
                state.step += 1
                state.images_seen += images
                if self.average is not None:
                    self.average.update(state.step)
                self.monitor.step(state.step, images, values, self.engine.module, self.checkpoints.blocked)
                self._milestones(values)
                profile.step()

    def _flops_per_image(self, model: PretrainingModel) -> float | None:
        """Counted before an engine takes the model apart, by each process alone on what it holds at a time.

        None where that does not fit without training.activation_checkpointing, whose own operations are no use of the
        model.
        """
        training = self.training
        model.to(ray.train.torch.get_device())
        group = alone()
        examples = read_examples(self.job.train, self.job.train.row_groups[0])
        examples = examples.slice(0, max(1, training.batch_size // self.world_size // training.chunks))
        try:
            batch = self._collate(examples, model, 0).to(model.device)
            return model_flops(model, batch, group, bf16=training.precision == "bf16") / len(batch)
        except torch.OutOfMemoryError:
            if self.rank == 0:
                print("mfu: not shown, as counting a step's operations takes more memory than the step", flush=True)
            return None

    def _batches(self) -> Generator[tuple[pa.Table, Batch]]:
        """Examples and the batch of them for each step that is left; on a GPU, made while the step before it runs.

        On CPUs it would be made by the cores that take the step.
        """
        device = self.engine.device
        made = self._made()
        return ahead(made, device) if device.type == "cuda" else made

    def _made(self) -> Generator[tuple[pa.Table, Batch]]:
        """What is drawn here depends on seed, step and study alone, so it may be made before its turn."""
        first = self.state.step
        shares = [self.timeline.share(step, self.rank, self.world_size) for step in range(self.timeline.steps)]
        tables = stream(
            self.job.train,
            rank=self.rank,
            world_size=self.world_size,
            seed=self.config.seed,
            skip=sum(shares[:first]),
            sizes=shares[first:],
        )
        for step, examples in enumerate(tables, first):
            batch = self._collate(examples, self.engine.module, step)
            yield examples, batch.pin_memory() if self.engine.device.type == "cuda" else batch

    def _step(self, examples: pa.Table, batch: Batch) -> dict[str, float]:
        state, engine = self.state, self.engine
        # Dropout is a function of step and rank, so that a resumed run draws what the uninterrupted one would have.
        torch.manual_seed(hash((self.config.seed, state.step, self.rank)))
        batch = batch.to(engine.device, non_blocking=True)
        rate = self.timeline.learning_rate(state.step) * state.progress.rate_scale
        engines.set_learning_rate(engine, rate)
        if self.training.chunks == 1:
            with examined(examples, state.step + 1):
                losses = engine(batch)
            values = self._finite(losses, examples)
            engine.backward(losses["loss"])
        else:
            backward = partial(engines.backward, engine)
            with examined(examples, state.step + 1):
                losses = cached_backward(engine, backward, batch, self.training.chunks)
            values = self._finite(losses, examples)
        norm = engines.norm_before_step(engine)
        if norm is not None:
            values = self._guarded({**values, "grad_norm": norm}, examples)
        engine.step()
        if norm is None:
            values = self._guarded({**values, "grad_norm": float(engine.get_global_grad_norm())}, examples)
        return {**values, "lr": rate}

    def _collate(self, examples: pa.Table, model: PretrainingModel, step: int) -> Batch:
        cached = self.config.vision.cache_features
        return collate(examples, model.text, self.config.data, cached=cached, seed=self.config.seed, step=step)

    def _finite(self, losses: dict[str, torch.Tensor], examples: pa.Table) -> dict[str, float]:
        return self._guarded({name: float(value.detach()) for name, value in losses.items()}, examples)

    def _guarded(self, values: dict[str, float], examples: pa.Table) -> dict[str, float]:
        guard(values, examples, self.state.step + 1)
        return values

    def _milestones(self, values: dict[str, float]) -> None:
        """Validate, report and save when the step calls for it."""
        training, state = self.training, self.state
        last = state.step == self.timeline.steps
        metrics: dict[str, float] = {**values, "step": state.step, "images_seen": state.images_seen}
        if training.validate_every:
            due = _every(training.validate_every, state.step)
        else:
            due = self.timeline.ends_epoch(state.step)
        if (due or last) and self.job.validation is not None:
            figures = self._validate(self.job.validation)
            metrics.update(figures)
            self.monitor.scalars(state.step, figures)
            reached = score(figures, training)
            if reached is not None:
                metrics[SCORE] = reached
            state.progress.update(reached, training)
            state.stopped = state.progress.exhausted(training)
            if self.rank == 0:
                shown = "  ".join(f"{name.removeprefix('validation/')} {value:.4f}" for name, value in figures.items())
                print(f"step {state.step}: validation {shown}{'  stopping early' * state.stopped}", flush=True)
        saves = _every(training.checkpoint_every, state.step) if training.checkpoint_every else due
        if last or state.stopped or saves:
            self.checkpoints.save(self.engine, state, metrics, self.average)
        elif due:
            # In turn with the checkpoints, whose uploads nobody waits for.
            ray.train.report(metrics, checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC)

    def _validate(self, source: Source) -> dict[str, float]:
        model = self.engine.module
        stage3 = self.training.zero_stage == 3
        gathered = deepspeed.zero.GatheredParameters(list(model.parameters())) if stage3 else nullcontext()
        # At stage 3 each layer of each forward is a meeting of all processes, so all of them do the same.
        rank, world_size = (0, 1) if stage3 else (self.rank, self.world_size)
        with gathered, self.average.applied() if self.average is not None else nullcontext():
            figures = validate(model, source, self.config, rank=rank, world_size=world_size)
            if rank == 0 and isinstance(model, AlignmentModel):
                with autocast(model, self.config):
                    pictures = sample_maps(model, source, self.config)
                self.monitor.images(self.state.step, pictures)
        return figures


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
