"""Training without an engine: the plain PyTorch loop that engines are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayzero.alignment.base import Batch, PretrainingModel
from rayzero.config import Config
from rayzero.training.engine import parameter_groups


@dataclass(frozen=True)
class Curve:
    """What the steps gave: the loss before each, the norm of its gradient before clipping, and the last weights."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


def train(
    network: PretrainingModel, config: Config, data: Batch, steps: int, before: Callable[[], object] = lambda: None
) -> Curve:
    """Take ``steps`` steps on ``data`` with the optimizer of ``config``; ``before`` is called at the start of each."""
    training = config.training
    optimizer = torch.optim.AdamW(
        parameter_groups(network, config), lr=training.lr, betas=training.betas, eps=training.eps
    )
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    losses, norms = [], []
    for _ in range(steps):
        before()
        optimizer.zero_grad()
        loss = network.loss(data)["loss"]
        losses.append(float(loss.detach()))
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, training.gradient_clip)))
        optimizer.step()
    return Curve(losses, norms, {name: value.detach() for name, value in network.named_parameters()})
