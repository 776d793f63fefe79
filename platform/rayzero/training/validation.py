"""Validation during training, sharded over the workers: zero-shot classification, and the loss."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from sklearn.metrics import roc_auc_score

from rayzero.alignment.base import AlignmentModel, PretrainingModel
from rayzero.config import Config
from rayzero.studies.examples import admitted_views, stacked
from rayzero.studies.lake import RowGroup, read_parquet_group
from rayzero.studies.loading import Source, read_examples
from rayzero.training.batches import collate

T = TypeVar("T")


@torch.no_grad()
def validate(
    model: PretrainingModel, source: Source, config: Config, *, rank: int, world_size: int
) -> dict[str, float]:
    """Figures of the validation split, the same on every process.

    ``validation/macro_auroc`` over the labelled findings, for a system that answers queries; findings with one class
    only have no AUROC and are left out, ``validation/findings`` counts the rest. ``validation/loss``, the objective
    averaged over batches of evaluation.batch_size, for a system that does not, or where training.monitor asks for it.
    """
    was_training = model.training
    model.eval()
    mine = source.row_groups[rank::world_size]
    figures: dict[str, float] = {}
    with autocast(model, config):
        scored = [_score(model, source, group, config) for group in mine] if isinstance(model, AlignmentModel) else None
    if scored is not None:
        values = _auroc(_gather(scored, world_size))
        figures["validation/macro_auroc"] = float(np.mean(list(values.values()))) if values else float("nan")
        figures["validation/findings"] = float(len(values))
    if config.training.monitor == "loss" or not isinstance(model, AlignmentModel):
        alone = _alone()
        with autocast(model, config):
            losses = [_losses(model, source, group, config, alone) for group in mine]
        sums = _gather(losses, world_size)
        figures["validation/loss"] = sum(total for total, _ in sums) / max(1, sum(count for _, count in sums))
    model.train(was_training)
    return figures


def autocast(model: PretrainingModel, config: Config) -> torch.autocast:
    """The precision of training, which the engine gives to steps alone."""
    bf16 = config.training.precision == "bf16"
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16)


def has_auroc(source: Source) -> bool:
    """Whether some finding is known to be present in one example of ``source`` and absent in another."""
    seen: dict[str, set[int]] = {}
    views = admitted_views(source.data)
    for group in source.row_groups:
        for row in read_parquet_group(group, ["labels", "images.list.element.view"]).to_pylist():
            if any(image["view"] in views for image in row["images"]):
                for name, value in dict(row["labels"]).items():
                    seen.setdefault(name, set()).add(value)
    return any({0, 1} <= values for values in seen.values())


def _gather(mine: list[T], world_size: int) -> list[T]:
    gathered: list[list[T]] = [[] for _ in range(world_size)]
    if world_size > 1:
        dist.all_gather_object(gathered, mine)
    else:
        gathered = [mine]
    return [part for parts in gathered for part in parts]


@cache
def _alone() -> dist.ProcessGroup | None:
    """A group of this process only: row groups differ in number, so validation losses are not exchanged."""
    if not dist.is_initialized():
        return None
    # Every process has to take part in making every group.
    groups: list[dist.ProcessGroup] = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    return groups[dist.get_rank()]


def _losses(
    model: PretrainingModel, source: Source, group: RowGroup, config: Config, alone: dist.ProcessGroup | None
) -> tuple[float, int]:
    """The sum of a row group's losses, each weighted by the examples behind it, and their number."""
    examples = read_examples(source, group)
    said = "report" if config.data.texts == "report" else "sentences"
    examples = examples.filter([bool(value) for value in examples.column(said).to_pylist()])
    total, size = 0.0, config.evaluation.batch_size
    for start in range(0, examples.num_rows, size):
        rows = examples.slice(start, size)
        batch = collate(rows, model.text, config.data, cached=source.prepared, seed=config.seed).to(model.device)
        total += float(model.loss(batch, alone)["loss"]) * rows.num_rows
    return total, examples.num_rows


_Scored = tuple[list[dict[str, int]], list[str], npt.NDArray[np.float32]]


def _score(model: AlignmentModel, source: Source, group: RowGroup, config: Config) -> _Scored:
    examples = read_examples(source, group)
    labels = [dict(row) for row in examples.column("labels").to_pylist()]
    findings = sorted({name for row in labels for name in row})
    if not findings:
        return labels, [], np.zeros((len(labels), 0), np.float32)
    prompts = model.encode_prompts([config.evaluation.prompt.replace("{}", name) for name in findings])
    images = torch.from_numpy(stacked(examples)).to(model.device)
    present = torch.tensor(examples.column("present").to_pylist(), dtype=torch.bool, device=model.device)
    logits = []
    for rows in torch.arange(len(labels)).split(config.evaluation.batch_size):
        views = present[rows] if present.shape[1] else None
        given = {"features": images[rows]} if source.prepared else {"pixels": images[rows]}
        logits.append(model.score(model.encode_image(**given, present=views), prompts).float().cpu())
    return labels, findings, torch.cat(logits).numpy()


def _auroc(parts: list[_Scored]) -> dict[str, float]:
    truth: dict[str, list[int]] = {}
    score: dict[str, list[float]] = {}
    for labels, findings, logits in parts:
        for row, values in zip(labels, logits, strict=True):
            for name, value in zip(findings, values, strict=True):
                if row.get(name, -1) in (0, 1):
                    truth.setdefault(name, []).append(row[name])
                    score.setdefault(name, []).append(float(value))
    both = [name for name, values in truth.items() if len(set(values)) == 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {name: float(roc_auc_score(truth[name], score[name])) for name in both}
