"""Learning rates by depth, recomputed activations, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rayzero.config import load_config
from rayzero.training.average import Average
from rayzero.training.engine import parameter_groups
from rayzero.training.layers import compile_layers, rate_scales, recompute_activations
from tests.alignment import records
from tests.alignment.test_many_processes import SAID, batch, gradients, model
from tests.encoders.tiny import tiny_bert


def test_lower_layers_learn_slower(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    network = records.mrm(tmp_path)  # two layers in either encoder
    scales = rate_scales(network, 0.5)
    for name in ("vision.blocks.1", "text.network.encoder.layer.1"):
        assert {scale for key, scale in scales.items() if key.startswith(name)} == {1.0}
    for name in ("vision.blocks.0", "text.network.encoder.layer.0"):
        assert {scale for key, scale in scales.items() if key.startswith(name)} == {0.5}
    assert {scale for key, scale in scales.items() if "embeddings" in key} == {0.25}
    assert scales.keys() == {name for name, _ in network.named_parameters() if name.startswith(("vision.", "text."))}
    config = load_config(None, ["training.layer_decay=0.5", "training.lr=0.1", "text.lr_scale=0.1"])
    groups = parameter_groups(network, config)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    names = dict(network.named_parameters())
    assert rates[id(names["text.network.encoder.layer.0.output.dense.weight"])] == pytest.approx(0.1 * 0.1 * 0.5)
    assert len(rates) == sum(p.requires_grad for p in network.parameters())


def test_without_decay_there_are_four_groups_in_the_order_of_old(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    groups = parameter_groups(model(tmp_path), load_config(None, ["text.lr_scale=0.5"]))
    assert [(group["lr_scale"], group["weight_decay"]) for group in groups] == [
        (0.5, 0.05),
        (0.5, 0.0),
        (1.0, 0.05),
        (1.0, 0.0),
    ]


def test_recomputed_layers_give_the_same_gradients_with_dropout(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    kept, again = model(tmp_path).train(), model(tmp_path).train()
    # RadZero's one block, and the two layers of the text encoder.
    assert recompute_activations(again) == 3
    for network in (kept, again):
        torch.manual_seed(1)
        network.loss(batch(network.text, range(len(SAID))))["loss"].backward()
    assert gradients(kept).keys() == gradients(again).keys()
    for name, gradient in gradients(kept).items():
        torch.testing.assert_close(gradients(again)[name], gradient, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("again", [False, True])
def test_compiled_layers_give_the_same_gradients(tmp_path: Path, again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        """Differentiates what was captured, and runs it as it is: native code takes a minute to build."""
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    tiny_bert(tmp_path)
    plain, compiled = model(tmp_path).train(), model(tmp_path).train()
    assert compile_layers(compiled) == 3
    if again:
        recompute_activations(compiled)
    for network in (plain, compiled):
        torch.manual_seed(1)
        network.loss(batch(network.text, range(len(SAID))))["loss"].backward()
    assert len(graphs) >= 2
    assert gradients(plain).keys() == gradients(compiled).keys()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(compiled)[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_moving_average_follows_is_lent_and_is_saved(tmp_path: Path) -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    average = Average(network, decay=0.9)
    expected = 0.0
    for step in range(1, 200):
        network.weight.data.fill_(float(step))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        assert float(network.weight) == pytest.approx(expected, rel=1e-5)
    assert float(network.weight) == 199.0
    average.save(tmp_path)
    other = Average(torch.nn.Linear(1, 1, bias=False), decay=0.9)
    other.load(tmp_path)
    with other.applied(), average.applied():
        assert torch.equal(next(iter(other._trained.values())), network.weight)
