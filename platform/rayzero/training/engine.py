"""The DeepSpeed engine: what is optimised, how, and at which ZeRO stage."""

from __future__ import annotations

from typing import Any

import deepspeed
import deepspeed.ops
import torch
from torch import nn

from rayzero.alignment.base import PretrainingModel
from rayzero.config import Config, TrainingConfig

# Its shared-memory collective is compiled at the first initialisation, a minute per worker start, and a killed
# build leaves a lock that later runs wait on for ever. gloo does the same work.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def build_engine(model: PretrainingModel, config: Config) -> deepspeed.DeepSpeedEngine:
    """``model`` wrapped for training on the process group that Ray Train has set up."""
    training = config.training
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(parameter_groups(model, config), lr=training.lr, betas=training.betas, eps=training.eps)
    # Pretrained encoders arrive in inference mode; without their dropout small corpora are overfitted, and the maps are
    # the first to suffer. Frozen encoders stay in it.
    model.train()
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(training), dist_init_required=False
    )
    return engine


def deepspeed_config(training: TrainingConfig) -> dict[str, Any]:
    """The DeepSpeed settings of a run. Clipping is explicit: left out, DeepSpeed clips to norm 1."""
    return {
        # Only their ratio matters to the engine; the loop decides how large each step is.
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": training.batch_size // training.workers,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.gradient_clip,
        "zero_optimization": {"stage": training.zero_stage},
        "zero_allow_untested_optimizer": True,
        # Autocast leaves parameters, and so the optimizer's state, in fp32: pure bf16 weights cannot follow
        # small updates of temperatures, norms and LayerScale (RadZero spec, defect 4).
        "torch_autocast": {"enabled": training.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def parameter_groups(model: PretrainingModel, config: Config) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and decay: no decay on norms, biases, scales and temperatures.

    Each group carries ``lr_scale``, its learning rate over the schedule's.
    """
    training = config.training
    groups: list[dict[str, Any]] = []
    text = {id(parameter) for parameter in model.text.parameters()}
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    for is_text in (True, False):
        for decays in (True, False):
            chosen = [
                parameter
                for parameter in model.parameters()
                if parameter.requires_grad
                and (id(parameter) in text) == is_text
                and (parameter.ndim > 1 and id(parameter) not in norms) == decays
            ]
            if chosen:
                scale = config.text.lr_scale if is_text else 1.0
                decay = training.weight_decay if decays else 0.0
                groups.append({"params": chosen, "weight_decay": decay, "lr_scale": scale, "lr": training.lr * scale})
    if not groups:
        raise ValueError("nothing to train: every part of the model is frozen")
    return groups


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, rate: float) -> None:
    """Give each parameter group its share of ``rate``."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def backward(engine: deepspeed.DeepSpeedEngine, loss: torch.Tensor, *, last: bool) -> None:
    """Accumulate gradients; they are exchanged between processes after the ``last`` call of a step alone."""
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(loss)
