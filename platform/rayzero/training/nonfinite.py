"""Training stops when a loss or a gradient is no longer a number, and says what it was looking at."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import pyarrow as pa
import ray.train
import torch.distributed as dist

from rayzero.training.errors import TrainingError


class NonFiniteError(TrainingError):
    """The loss or the gradient stopped being a number; training stops before the damage is saved."""


def guard(values: dict[str, float], examples: pa.Table, step: int) -> None:
    """Raise NonFiniteError when a value is not finite, after writing ``nonfinite-STEP.json`` to the run folder.

    The file holds the values and, of every worker, the studies of its share of the batch. ``values`` are those of
    the global batch, so every process sees the same and all of them come here together.
    """
    wrong = sorted(name for name, value in values.items() if not math.isfinite(value))
    if not wrong:
        return
    context = ray.train.get_context()
    studies: list[list[str]] = [[] for _ in range(context.get_world_size())]
    dist.all_gather_object(studies, examples.column("study_id").to_pylist())
    storage = context.get_storage()
    path = f"{storage.experiment_fs_path}/nonfinite-{step:08d}.json"
    if context.get_world_rank() == 0:
        found = {
            "step": step,
            "values": {name: value if math.isfinite(value) else str(value) for name, value in values.items()},
            "studies": {f"worker {rank}": ids for rank, ids in enumerate(studies)},
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with storage.storage_filesystem.open_output_stream(path) as file:
            file.write(json.dumps(found, indent=1).encode())
    raise NonFiniteError(
        f"{', '.join(wrong)} is not a number at step {step}; {path} names the studies of the batch. Lower "
        "training.lr, or look at these studies"
    )
