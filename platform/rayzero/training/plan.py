"""What a run will need, worked out before it starts: parameters, steps, and memory at each ZeRO stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rayzero.alignment import registry
from rayzero.alignment.base import PretrainingModel
from rayzero.config import Config
from rayzero.training.timeline import Timeline

STAGES = (0, 1, 2, 3)
_WEIGHT, _HALF = 4, 2


@dataclass(frozen=True)
class Part:
    """A part of a model and its number of parameters."""

    name: str
    trained: int
    frozen: int


@dataclass(frozen=True)
class Plan:
    """A run in figures. ``memory`` is bytes per worker by ZeRO stage, activations and buffers not included."""

    parts: tuple[Part, ...]
    examples: int
    steps: int
    steps_per_epoch: int
    memory: Mapping[int, Mapping[str, int]]


def count_parts(model: PretrainingModel) -> tuple[Part, ...]:
    """Parameters of the vision encoder, of the text encoder, and of what stands on them."""
    owner = {id(p): name for name in ("vision", "text") for p in getattr(model, name).parameters()}
    counts = {name: [0, 0] for name in ("vision", "text", "alignment")}
    for parameter in model.parameters():
        counts[owner.get(id(parameter), "alignment")][0 if parameter.requires_grad else 1] += parameter.numel()
    return tuple(Part(name, trained, frozen) for name, (trained, frozen) in counts.items())


def state_bytes(
    trained: int, frozen: int, *, workers: int, stage: int, bf16: bool, offload: bool, ema: bool = False
) -> dict[str, int]:
    """Bytes that one of ``workers`` holds on its device for weights, gradients and optimizer between steps.

    Weights and gradients are fp32; Adam keeps two moments, and ZeRO from stage 1 on a master copy of the weights
    beside them, all fp32. Under bf16 each weight is cast once per step. ``offload`` keeps the optimizer's part on the
    host; ``ema`` adds the average of the weights, whole on every worker.
    """
    share = -(-trained // workers)
    weights = _WEIGHT * (trained + frozen)
    return {
        "weights": -(-weights // workers) if stage == 3 else weights,
        "bf16 copies": _HALF * (trained + frozen) if bf16 else 0,
        "gradients": _WEIGHT * (share if stage >= 2 else trained),
        "optimizer": 0 if offload else 2 * _WEIGHT * trained if stage == 0 else 3 * _WEIGHT * share,
        "average": _WEIGHT * trained if ema else 0,
    }


def plan(config: Config, examples: int) -> Plan:
    """The plan of ``config`` over ``examples`` training examples. Loads the model's encoders."""
    training = config.training
    parts = count_parts(registry.build(config))
    timeline = Timeline(training, examples)
    trained, frozen = sum(part.trained for part in parts), sum(part.frozen for part in parts)
    memory = {
        stage: state_bytes(
            trained,
            frozen,
            workers=training.workers,
            stage=stage,
            bf16=training.precision == "bf16",
            offload=training.offload == "optimizer" and stage > 0,
            ema=training.ema > 0,
        )
        for stage in STAGES
    }
    return Plan(parts, examples, timeline.steps, examples // training.batch_size, memory)


def describe(planned: Plan, config: Config) -> str:
    """The plan for a terminal."""
    training = config.training
    lines = [f"{'part':12} {'trained':>14} {'frozen':>14}"]
    lines += [f"{part.name:12} {part.trained:>14,} {part.frozen:>14,}" for part in planned.parts]
    lines += [
        "",
        f"examples         {planned.examples:,}",
        f"augmentation     {_augmentation(config)}",
        f"steps per epoch  {planned.steps_per_epoch:,} of {training.batch_size} images over {training.workers} workers",
        f"steps            {planned.steps:,}",
        "",
        "GiB per worker, without activations and communication buffers",
    ]
    names = list(next(iter(planned.memory.values())))
    lines.append(f"{'stage':8}" + "".join(f"{name:>14}" for name in (*names, "sum")))
    taken = training.stage_of(training.workers)
    why = "training.zero_stage" if taken == training.zero_stage else "one worker has nobody to share with"
    for stage, held in planned.memory.items():
        figures = (*held.values(), sum(held.values()))
        mark = f" <- {why}" if stage == taken else ""
        lines.append(f"{stage:<8}" + "".join(f"{value / 2**30:>14.3f}" for value in figures) + mark)
    return "\n".join(lines)


def _augmentation(config: Config) -> str:
    changed = config.data.augmentation.changed
    return ", ".join(f"{name} {value}" for name, value in changed.items()) or "none"
