"""Zero-shot classification of validation images during training, sharded over the workers."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from sklearn.metrics import roc_auc_score

from rayzero.alignment.base import AlignmentModel
from rayzero.config import Config
from rayzero.studies.examples import stacked
from rayzero.studies.loading import Source, read_examples


@torch.no_grad()
def validate(model: AlignmentModel, source: Source, config: Config, *, rank: int, world_size: int) -> dict[str, float]:
    """Macro AUROC over the labelled findings, the same on every process.

    Findings with one class only have no AUROC and are left out; ``validation/findings`` counts the rest.
    """
    was_training = model.training
    model.eval()
    mine = [_score(model, source, index, config) for index in range(rank, len(source.row_groups), world_size)]
    gathered: list[list[_Scored]] = [[] for _ in range(world_size)]
    if world_size > 1:
        dist.all_gather_object(gathered, mine)
    else:
        gathered = [mine]
    model.train(was_training)
    values = _auroc([part for parts in gathered for part in parts])
    macro = float(np.mean(list(values.values()))) if values else float("nan")
    return {"validation/macro_auroc": macro, "validation/findings": float(len(values))}


_Scored = tuple[list[dict[str, int]], list[str], npt.NDArray[np.float32]]


def _score(model: AlignmentModel, source: Source, index: int, config: Config) -> _Scored:
    examples = read_examples(source, source.row_groups[index])
    labels = [dict(row) for row in examples.column("labels").to_pylist()]
    findings = sorted({name for row in labels for name in row})
    prompts = model.encode_prompts([config.evaluation.prompt.format(name) for name in findings])
    images = torch.from_numpy(stacked(examples)).to(model.device)
    logits = []
    for part in images.split(config.evaluation.batch_size):
        encoded = model.encode_image(features=part) if source.prepared else model.encode_image(part)
        logits.append(model.score(encoded, prompts).float().cpu())
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
