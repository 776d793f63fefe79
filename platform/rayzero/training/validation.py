"""Validation during training, sharded over the workers: zero-shot figures, and the loss."""

from __future__ import annotations

import math
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist

from rayzero.alignment.base import AlignmentModel, PretrainingModel
from rayzero.config import Config
from rayzero.studies.lake import RowGroup
from rayzero.studies.loading import Source, read_examples
from rayzero.training import zero_shot
from rayzero.training.batches import collate
from rayzero.training.validation_images import read_validation_images

T = TypeVar("T")


@torch.no_grad()
def validate(
    model: PretrainingModel, source: Source, config: Config, *, rank: int, world_size: int
) -> dict[str, float]:
    """Figures of the validation split, the same on every process.

    Those of ``zero_shot.figures`` for a system that answers queries. ``validation/loss``, the objective averaged over
    batches of evaluation.batch_size, for a system that does not, or where training.monitor asks for it.
    """
    was_training = model.training
    model.eval()
    mine = source.row_groups[rank::world_size]
    figures: dict[str, float] = {}
    if isinstance(model, AlignmentModel):
        truth = read_validation_images(source.studies or source.row_groups, source.data)
        with autocast(model, config):
            asked = zero_shot.ZeroShot(model, source, truth, config)
            scored = [one for group in mine for one in asked.score(group)]
        figures |= zero_shot.figures(_gather(scored, world_size), truth, config)
    if config.training.monitor == "loss" or not isinstance(model, AlignmentModel):
        myself = alone()
        with autocast(model, config):
            losses = [_losses(model, source, group, config, myself) for group in mine]
        sums = _gather(losses, world_size)
        count = sum(count for _, count in sums)
        # A split without texts has no loss, and 0 would be the best there is.
        figures["validation/loss"] = sum(total for total, _ in sums) / count if count else math.nan
    model.train(was_training)
    return figures


def autocast(model: PretrainingModel, config: Config) -> torch.autocast:
    """The precision of training, which the engine gives to steps alone."""
    bf16 = config.training.precision == "bf16"
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16)


def _gather(mine: list[T], world_size: int) -> list[T]:
    gathered: list[list[T]] = [[] for _ in range(world_size)]
    if world_size > 1:
        dist.all_gather_object(gathered, mine)
    else:
        gathered = [mine]
    return [part for parts in gathered for part in parts]


@cache
def alone() -> dist.ProcessGroup | None:
    """A group of this process only, for losses that are not exchanged: row groups differ in number."""
    if not dist.is_initialized():
        return None
    # Every process has to take part in making every group.
    groups: list[dist.ProcessGroup] = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    return groups[dist.get_rank()]


def _losses(
    model: PretrainingModel, source: Source, group: RowGroup, config: Config, myself: dist.ProcessGroup | None
) -> tuple[float, int]:
    """The sum of a row group's losses, each weighted by the examples behind it, and their number."""
    examples = read_examples(source, group)
    said = "report" if config.data.texts == "report" else "sentences"
    examples = examples.filter([bool(value) for value in examples.column(said).to_pylist()])
    total, size = 0.0, config.evaluation.batch_size
    for start in range(0, examples.num_rows, size):
        rows = examples.slice(start, size)
        batch = collate(rows, model.text, config.data, cached=source.prepared, seed=config.seed).to(model.device)
        total += float(model.loss(batch, myself)["loss"]) * rows.num_rows
    return total, examples.num_rows
