"""Training stops when a loss or a gradient is no longer a number, and says what it was looking at."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pyarrow as pa
import ray.train

from rayzero.ops.contrastive import NonFiniteLogitsError
from rayzero.training.errors import TrainingError


class NonFiniteError(TrainingError):
    """The loss or the gradient stopped being a number; training stops before the damage is saved.

    Every worker raises it at the same step, or none: so each can end by itself.
    """


def guard(values: dict[str, float], examples: pa.Table, step: int) -> None:
    """Raise NonFiniteError when a value is not finite, after this worker has written what it was looking at.

    ``nonfinite-STEP-worker-RANK.json`` in the run folder holds the values and the studies of the worker's share.
    ``values`` are those of the global batch: every worker sees the same, and each writes its own.
    """
    wrong = sorted(name for name, value in values.items() if not math.isfinite(value))
    if wrong:
        path = _record(values, examples, step, f"{', '.join(wrong)} is not a number")
        raise NonFiniteError(
            f"{', '.join(wrong)} is not a number at step {step}; {path} names the studies. Lower training.lr, or look "
            "at these studies"
        )


@contextmanager
def examined(examples: pa.Table, step: int) -> Iterator[None]:
    """What a model refuses (ValueError) inside is recorded as ``guard`` does.

    Raises NonFiniteError for logits that are no numbers, which all workers see. Anything else may be one worker's
    alone, while others wait for it: that is TrainingError.
    """
    try:
        yield
    except ValueError as error:
        path = _record({}, examples, step, str(error))
        kind = NonFiniteError if isinstance(error, NonFiniteLogitsError) else TrainingError
        raise kind(f"step {step}: {error}; {path} names the studies") from error


def _record(values: dict[str, float], examples: pa.Table, step: int, problem: str) -> str:
    context = ray.train.get_context()
    storage = context.get_storage()
    path = f"{storage.experiment_fs_path}/nonfinite-{step:08d}-worker-{context.get_world_rank()}.json"
    found = {
        "step": step,
        "problem": problem,
        "values": {name: value if math.isfinite(value) else str(value) for name, value in values.items()},
        "studies": examples.column("study_id").to_pylist(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with storage.storage_filesystem.open_output_stream(path) as file:
        file.write(json.dumps(found, indent=1).encode())
    return path
