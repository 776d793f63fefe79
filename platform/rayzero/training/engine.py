"""The DeepSpeed engine: what is optimised, how, and at which ZeRO stage."""

from __future__ import annotations

from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from torch import nn

from rayzero.alignment.base import PretrainingModel
from rayzero.config import Config, TrainingConfig
from rayzero.training.layers import compile_layers, rate_scales, recompute_activations

# Its shared-memory collective is compiled at the first initialisation, a minute per worker start, and a killed
# build leaves a lock that later runs wait on for ever. gloo does the same work.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def build_engine(model: PretrainingModel, config: Config) -> deepspeed.DeepSpeedEngine:
    """``model`` wrapped for training on the process group that Ray Train has set up."""
    training = config.training
    deepspeed.init_distributed(dist_backend=dist.get_backend())
    if training.compile:
        compile_layers(model)
    if training.activation_checkpointing:
        recompute_activations(model)
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(parameter_groups(model, config), lr=training.lr, betas=training.betas, eps=training.eps)
    # Pretrained encoders arrive in inference mode; without their dropout small corpora are overfitted, and the maps are
    # the first to suffer. Frozen encoders stay in it.
    model.train()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(training, dist.get_world_size()),
        dist_init_required=False,
    )
    return engine


def deepspeed_config(training: TrainingConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed settings of a run. Clipping is explicit: left out, DeepSpeed clips to norm 1."""
    zero: dict[str, Any] = {"stage": training.zero_stage}
    if training.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # Only their ratio matters to the engine; the loop decides how large each step is.
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.gradient_clip,
        "zero_optimization": zero,
        # Its own Adam for the host is compiled at start, and torch's is exact.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        # Autocast leaves parameters, and so the optimizer's state, in fp32: pure bf16 weights cannot follow
        # small updates of temperatures, norms and LayerScale (RadZero spec, defect 4).
        # No module is named whose parameters may travel in bf16: gradients are exchanged, and at stage 3 weights
        # gathered, in fp32 at every stage alike.
        "torch_autocast": {
            "enabled": training.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def parameter_groups(model: PretrainingModel, config: Config) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and decay: no decay on norms, biases, scales and temperatures.

    Each group carries ``lr_scale``, its learning rate over the schedule's.
    """
    training = config.training
    scales = rate_scales(model, training.layer_decay)
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    text = {id(parameter) for parameter in model.text.parameters()}
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in norms
            key = (id(parameter) in text, scales.get(name, 1.0), decays)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("nothing to train: every part of the model is frozen")
    # The text encoder first, and in each part what decays: an order that checkpoints rely on.
    return [
        {
            "params": groups[key],
            "weight_decay": training.weight_decay if decays else 0.0,
            "lr_scale": scale * (config.text.lr_scale if is_text else 1.0),
            "lr": training.lr * scale * (config.text.lr_scale if is_text else 1.0),
        }
        for key in sorted(groups, reverse=True)
        for is_text, scale, decays in [key]
    ]


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, rate: float) -> None:
    """Give each parameter group its share of ``rate``."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def norm_before_step(engine: deepspeed.DeepSpeedEngine) -> float | None:
    """At ZeRO stage 0 the global norm of the gradients, not clipped yet, when all backward calls of a step are done.

    None at other stages: there DeepSpeed looks before it steps, and ``get_global_grad_norm`` tells afterwards.
    """
    if engine.zero_optimization_stage() > 0:
        return None
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def backward(engine: deepspeed.DeepSpeedEngine, loss: torch.Tensor, *, last: bool) -> None:
    """Accumulate gradients; they are exchanged between processes after the ``last`` call of a step alone."""
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(loss)
