"""What Ray Train and DeepSpeed cost beside a bare PyTorch loop: ``python -m tests.benchmarks.training [--out FILE]``.

One Ray Train worker takes the quickstart's steps on cached features; after each, a plain PyTorch loop takes a step with
the same model on the same examples, in the same process, as does a second engine with ``training.compile``, and the
order alternates. Then the quickstart's own command, whose features are cached by then, is timed from the command to
its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.command import connect, preset_config
from rayzero.alignment import registry
from rayzero.config import Config, override
from rayzero.studies.lake import open_lake
from rayzero.training.batches import collate
from rayzero.training.engine import parameter_groups
from rayzero.training.features import training_sources
from rayzero.training.loop import Job, _Worker
from rayzero.training.run import _WITHOUT_GPU
from rayzero.training.run_storage import train_storage
from tests.benchmarks.harness import Row, report
from tests.toys import toy_lake

_UNTIMED = 2
_REPOSITORY = Path(__file__).parents[2]


def compare(settings: dict[str, Any]) -> None:
    """Take steps with the engine, with it compiled and with the bare loop in turn; writes the seconds of each."""
    job: Job = settings["job"]
    config, training = job.config, job.config.training
    torch.set_num_threads(max(1, round(training.cpus_per_worker)))
    ours = _Worker(job)
    compiled = _Worker(
        replace(job, config=override(config, {"training.compile": True}), log_dir=f"{job.log_dir}-compiled")
    )
    torch.manual_seed(config.seed)
    bare = registry.build(config).train()
    trained = [p for p in bare.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameter_groups(bare, config), lr=training.lr, betas=training.betas)

    def engine_step(worker: _Worker, examples: Any, step: int) -> float:
        batch = worker._collate(examples, worker.engine.module, step)
        values = worker._step(examples, batch)
        worker.state.step += 1
        worker.monitor.step(worker.state.step, training.batch_size, values, worker.engine.module, 0.0)
        return values["loss"]

    def bare_step(examples: Any, step: int) -> float:
        torch.manual_seed(hash((config.seed, step, 0)))
        batch = collate(examples, bare.text, config.data, cached=True, seed=config.seed, step=step)
        for group in optimizer.param_groups:
            group["lr"] = ours.timeline.learning_rate(step) * group["lr_scale"]
        optimizer.zero_grad()
        loss = bare(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, training.gradient_clip)
        optimizer.step()
        return float(loss)

    takes = (partial(engine_step, ours), bare_step, partial(engine_step, compiled))
    seconds: list[list[float]] = [[] for _ in takes]
    losses: list[list[float]] = [[] for _ in takes]
    for step, (examples, _) in enumerate(ours._batches()):
        # Each goes first as often: the first one shares its core with the reading of the next batch.
        for which in (*range(step % len(takes), len(takes)), *range(step % len(takes))):
            start = time.perf_counter()
            losses[which].append(takes[which](examples, step))
            seconds[which].append(time.perf_counter() - start)
    for worker in (ours, compiled):
        worker.monitor.close()
    Path(settings["out"]).write_text(json.dumps({"seconds": seconds, "losses": losses}))


def interleaved(config: Config, out: Path) -> tuple[float, float, float]:
    """Median images per second of the engine, the bare loop and the compiled engine.

    Raises AssertionError when their losses part.
    """
    lake = open_lake(config.data.lake)
    source = training_sources(config, lake, ["train"])["train"]
    job = Job(config, source, None, f"{config.storage}/compared/tensorboard")
    TorchTrainer(
        compare,
        train_loop_config={"job": job, "out": str(out)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=1, resources_per_worker={"CPU": config.training.cpus_per_worker}
        ),
        run_config=ray.train.RunConfig(name="compared", **_carried_out(config)),
    ).fit()
    measured = json.loads(out.read_text())
    engine, bare, compiled = (torch.tensor(curve) for curve in measured["losses"])
    torch.testing.assert_close(engine, bare, rtol=1e-3, atol=1e-4)
    # Compiled code draws its dropout otherwise: the same course, not the same numbers.
    torch.testing.assert_close(compiled.mean(), bare.mean(), rtol=0.1, atol=0.0)
    first, second, third = (
        config.training.batch_size / statistics.median(times[_UNTIMED:]) for times in measured["seconds"]
    )
    return first, second, third


def timed_command(settings: Sequence[str]) -> float:
    """Seconds from the command to its first step; waits for the run's end."""
    environment = {**os.environ, "RAY_ADDRESS": "", "PYTHONUNBUFFERED": "1"}
    start, first = time.monotonic(), 0.0
    command = [sys.executable, "-m", "jobs.pretrain", "--preset", "quickstart", *settings]
    with subprocess.Popen(
        command, cwd=_REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if not first and "step 1/" in line:
                first = time.monotonic() - start
    assert run.returncode == 0, "the quickstart's command failed"
    return first


def data_wait(run: Path) -> float:
    """Mean share of a run's time that went into waiting for data, the first interval left out."""
    newest = max((run / "tensorboard").glob("events*"), key=lambda path: path.stat().st_mtime)
    values = [event.value for event in EventAccumulator(str(newest)).Reload().Scalars("train/data_wait")]
    return statistics.fmean(values[1:])


def measure(folder: Path, steps: int) -> list[Row]:
    """The figures of this machine."""
    toy_lake(str(folder / "lake"), train=128)
    settings = [f"data.lake={folder}/lake", f"storage={folder}", f"training.steps={steps}"]
    alone = ["training.workers=1", "training.cpus_per_worker=1"]
    connect()
    ours, other, compiled = interleaved(preset_config("quickstart", [*settings, *alone]), folder / "seconds.json")
    ray.shutdown()
    start = timed_command([*settings, "name=timed"])
    return [
        Row("images/s, Ray Train + DeepSpeed : bare PyTorch", ours, other, 0.95, "higher"),
        Row("images/s, training.compile : without", compiled, ours, None, "higher"),
        Row("waiting for data, share of a run", data_wait(folder / "timed"), None, 0.02),
        Row("seconds from the command to its first step", start, None, 60.0),
    ]


def _carried_out(config: Config) -> dict[str, Any]:
    filesystem, path = train_storage(config.storage)
    # As a run does: where there is a GPU, the engine would be on it and the bare loop on the CPU.
    environment = {"env_vars": _WITHOUT_GPU}
    return {"storage_filesystem": filesystem, "storage_path": path, "worker_runtime_env": environment}


def main() -> None:
    """Print the table and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name), arguments.steps)
    if not report("training", rows, arguments.out, note="quickstart preset, cached features, two workers where timed"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
