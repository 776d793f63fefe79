"""Training checkpoints: DeepSpeed's sharded state and the loop's own state, on the run's storage.

These files are DeepSpeed pickles: they are read back from the run's own folder only. What leaves the run is a
bundle (``rayzero.bundle``), which holds no pickle.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import ray.train
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from rayzero.alignment.base import PretrainingModel
from rayzero.training.progress import Progress

_TAG = "deepspeed"


@dataclass
class LoopState:
    """Where the loop stands: everything beside weights and optimizer that a resumed run needs."""

    step: int = 0
    images_seen: int = 0
    stopped: bool = False
    progress: Progress = field(default_factory=Progress)


def save(engine: deepspeed.DeepSpeedEngine, state: LoopState, metrics: dict[str, Any]) -> None:
    """Save on every process and report the checkpoint to Ray Train; returns when it is on the run's storage."""
    rank = ray.train.get_context().get_world_rank()
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(
            folder,
            tag=_TAG,
            client_state={"loop": asdict(state)},
            save_latest=rank == 0,
            exclude_frozen_parameters=True,
        )
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"checkpoint-{state.step:08d}")


def restore(engine: deepspeed.DeepSpeedEngine) -> LoopState:
    """Load the run's newest checkpoint into ``engine`` when there is one, and say where the loop stands."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return LoopState()
    with checkpoint.as_directory() as folder:
        # Not strict: frozen parameters are left out of checkpoints, the encoder brings them.
        _, client = engine.load_checkpoint(folder, tag=_TAG, load_module_strict=False)
    loop = client["loop"]
    return LoopState(**{**loop, "progress": Progress(**loop["progress"])})


def load_weights(model: PretrainingModel, checkpoint: ray.train.Checkpoint) -> None:
    """Fill the trained parameters of ``model`` from a checkpoint of any ZeRO stage, in fp32.

    Raises RuntimeError when the checkpoint lacks a trained parameter or holds one that the model has not.
    """
    with checkpoint.as_directory() as folder:
        if any(Path(folder, _TAG).glob("*zero_pp_rank_*_optim_states.pt")):
            state = get_fp32_state_dict_from_zero_checkpoint(folder, tag=_TAG, exclude_frozen_parameters=True)
        else:
            # Stage 0 has no shards: the module's own state is complete.
            path = Path(folder, _TAG, "mp_rank_00_model_states.pt")
            state = torch.load(path, map_location="cpu", weights_only=False)["module"]
        result = model.load_state_dict(state, strict=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = sorted(trained.intersection(result.missing_keys))
    if missing or result.unexpected_keys:
        raise RuntimeError(
            f"checkpoint {checkpoint.path} does not fit this model: "
            f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}; was the run's config.yaml changed?"
        )
