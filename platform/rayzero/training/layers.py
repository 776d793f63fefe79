"""A model's transformer layers: learning rates by depth, activations computed again, and compilation."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rayzero.alignment.base import PretrainingModel


def rate_scales(model: PretrainingModel, decay: float) -> dict[str, float]:
    """By parameter name, the learning rate over that of the top: ``decay`` once per layer below the last of an encoder.

    What comes before an encoder's first layer (embeddings) lies one deeper than it. Parameters outside the encoders,
    and in an encoder without a stack of layers, are at the top.
    """
    scales: dict[str, float] = {}
    for part, encoder in (("vision", model.vision), ("text", model.text)):
        path, stack = _stack(encoder)
        for name, _ in encoder.named_parameters():
            below = 0
            if stack:
                index = name.removeprefix(f"{path}.").split(".")[0] if name.startswith(f"{path}.") else ""
                # After the stack comes what is normalised or projected at the end.
                before = not index and _comes_before(encoder, name, path)
                below = len(stack) - 1 - int(index) if index else len(stack) if before else 0
            scales[f"{part}.{name}"] = decay**below
    return scales


def recompute_activations(model: PretrainingModel) -> int:
    """Keep of each layer that trains its input alone, and run it again for its gradient; returns how many layers.

    Dropout draws the same both times. Parameters keep their names.
    """
    chosen = [layer for layer in _blocks(model) if any(parameter.requires_grad for parameter in layer.parameters())]
    for layer in chosen:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return len(chosen)


def compile_layers(model: PretrainingModel) -> int:
    """Compile each layer with ``torch.compile``; returns how many layers.

    Layer by layer, as layers of one shape share their code, which takes seconds where a whole model takes minutes.
    Parameters keep their names. To be called before ``recompute_activations``, which is not looked into.
    """
    chosen = _blocks(model)
    for layer in chosen:
        layer.forward = torch.compile(layer.forward)  # type: ignore[method-assign]
    return len(chosen)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer layers of ``model`` that are in no other one, in its order."""
    layers = [
        layer
        for stack in model.modules()
        if isinstance(stack, nn.ModuleList | nn.Sequential) and len(stack) > 0
        for layer in stack
        if _is_block(layer)
    ]
    inner = {child for layer in layers for child in layer.modules() if child is not layer}
    return [layer for layer in dict.fromkeys(layers) if layer not in inner]


def _is_block(layer: nn.Module) -> bool:
    """Whether it is a layer of a transformer, and no single projection or activation."""
    return sum(isinstance(module, nn.LayerNorm) for module in layer.modules()) >= 2


def _stack(encoder: nn.Module) -> tuple[str, nn.ModuleList | None]:
    """The encoder's transformer layers and their name: its longest list of blocks."""
    stacks = {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and all(_is_block(layer) for layer in module)
    }
    if not stacks:
        return "", None
    path = max(stacks, key=lambda name: len(stacks[name]))
    return path, stacks[path]


def _comes_before(encoder: nn.Module, name: str, path: str) -> bool:
    """Whether a parameter outside the stack is defined before it, as encoders list what they apply first first."""
    names = [parameter for parameter, _ in encoder.named_parameters()]
    first = next(index for index, parameter in enumerate(names) if parameter.startswith(f"{path}."))
    # Parameters of the encoder itself (class tokens, positions) are listed first, and belong there.
    return names.index(name) < first
