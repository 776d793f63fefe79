"""RadZero's variants, the code's and the paper's, against their formulas written out in float64."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from rayzero.alignment.base import Batch, ImageFeatures, TextFeatures
from rayzero.alignment.radzero import RadZero, RadZeroSettings
from rayzero.training.batches import text_id
from tests.encoders.tiny import TinyVision, tiny_bert, tiny_text

SENTENCES = ["There is a nodule", "There is no edema", "There is a left effusion"]
VARIANTS = list(product(("cosine", "dot"), ("unit", "raw")))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert(folder)
    return folder


def model(bert: Path, **settings: str) -> RadZero:
    torch.manual_seed(0)
    built = RadZero(TinyVision(), tiny_text(bert), RadZeroSettings(blocks=1, heads=2, **settings)).double().eval()
    # With the affine at identity all tokens have one length, and unit and raw values cannot be told apart.
    with torch.no_grad():
        built.norm.weight.mul_(torch.linspace(0.5, 2.0, 8))
        built.norm.bias.add_(0.3)
    return built


def films() -> Tensor:
    return torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def encoded(network: RadZero) -> tuple[ImageFeatures, TextFeatures]:
    return network.encode_image(films()), network.encode_text(network.text.tokenize(SENTENCES))


def normed(network: RadZero) -> tuple[Tensor, Tensor]:
    """The layer norm's output on both sides: texts (T, D) and tokens (B, N, D)."""
    pooled, _ = network.text(network.text.tokenize(SENTENCES))
    return network.norm(pooled), network.norm(network.blocks(network.vision(films())))


@pytest.mark.parametrize(("similarity", "values"), VARIANTS)
def test_score_and_map_are_the_formulas(similarity: str, values: str, bert: Path) -> None:
    network = model(bert, similarity=similarity, values=values)
    text, tokens = normed(network)
    q, u = F.normalize(text, dim=-1), F.normalize(tokens, dim=-1)
    if similarity == "cosine":
        scores = torch.einsum("td,bnd->btn", q, u) / network.temperature
    else:
        scores = torch.einsum("td,bnd->btn", text, tokens) / 8**0.5
    context = scores.softmax(dim=-1) @ (u if values == "unit" else tokens)
    expected = F.cosine_similarity(q, context, dim=-1) / network.temperature
    image, sentences = encoded(network)
    torch.testing.assert_close(network.score(image, sentences), expected, rtol=0, atol=1e-11)
    maps = network.similarity_map(image, sentences)
    torch.testing.assert_close(maps, scores[..., 1:].reshape(2, 3, 4, 4), rtol=0, atol=1e-11)
    parameters = [p for p in network.parameters() if p.requires_grad]
    mine, theirs = (
        torch.autograd.grad(out.square().sum(), parameters, allow_unused=True, retain_graph=True)
        for out in (network.score(image, sentences), expected)
    )
    for got, oracle in zip(mine, theirs, strict=True):
        assert (got is None) == (oracle is None)
        if got is not None:
            torch.testing.assert_close(got, oracle, rtol=1e-9, atol=1e-9)


def test_the_variants_differ(bert: Path) -> None:
    scores = [
        network.score(*encoded(network)) for s, v in VARIANTS for network in [model(bert, similarity=s, values=v)]
    ]
    for i, one in enumerate(scores):
        for other in scores[i + 1 :]:
            assert (one - other).abs().max() > 1e-6


def test_the_paper_s_loss_is_twice_the_code_s(bert: Path) -> None:
    tokens = model(bert).text.tokenize(SENTENCES)
    positives = torch.tensor([[True, False, True], [False, True, True]])
    batch = Batch(tokens, torch.tensor([text_id(s) for s in SENTENCES]), positives, pixels=films())
    mean, total = (model(bert, loss_reduction=way).loss(batch)["loss"] for way in ("mean", "sum"))
    torch.testing.assert_close(total, 2 * mean)


@pytest.mark.parametrize("setting", ["similarity", "values", "loss_reduction"])
def test_unknown_variants_are_refused(setting: str) -> None:
    with pytest.raises(ValidationError, match=setting):
        RadZeroSettings(**{setting: "other"})


def test_autocast_rounds_no_map_and_no_score(bert: Path) -> None:
    network = model(bert).float()
    image, text = network.encode_image(films().float()), network.encode_text(network.text.tokenize(SENTENCES))
    with torch.autocast("cpu", torch.bfloat16):
        score, maps = network.score(image, text), network.similarity_map(image, text)
    torch.testing.assert_close(score, network.score(image, text), rtol=0, atol=0)
    torch.testing.assert_close(maps, network.similarity_map(image, text), rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the fused kernels need a GPU")
def test_a_run_in_bfloat16_gives_the_fused_kernels_their_rows(bert: Path) -> None:
    """The layer norm before them gives fp32 under autocast, which would take the slow path of fp32 rows."""
    network = model(bert).float().cuda()
    with torch.autocast("cuda", torch.bfloat16):
        image = network.encode_image(films().float().cuda())
        text = network.encode_text(network.text.tokenize(SENTENCES).to("cuda"))
    assert image.tokens.dtype == text.pooled.dtype == torch.bfloat16
    assert network.encode_image(films().float().cuda()).tokens.dtype == torch.float32
