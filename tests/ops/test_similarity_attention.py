"""vl_cabs against the published formula, forward and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from rayzero.ops import vl_cabs
from rayzero.ops.similarity_attention import vl_cabs_reference
from rayzero.ops.similarity_tiles import Attention


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=generator), dim=-1).requires_grad_()


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def agree(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Values within 1e-12; gradients for a random upstream within 1e-10."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    upstream = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(0))
    mine, oracle = (torch.autograd.grad((out * upstream).sum(), inputs) for out in (ours, theirs))
    for got, expected in zip(mine, oracle, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=80)
@given(
    images=st.integers(1, 5),
    texts=st.one_of(st.integers(1, 7), st.just(40)),
    tokens=st.integers(1, 20),
    width=st.integers(2, 24),
    tau=st.floats(0.01, 1.0),
    masked=st.booleans(),
    scaled=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_equals_the_published_formula(
    images: int, texts: int, tokens: int, width: int, tau: float, masked: bool, scaled: bool, seed: int
) -> None:
    text, image = unit(texts, width, seed=seed), unit(images, tokens, width, seed=seed + 1)
    temperature = torch.tensor([tau], dtype=torch.float64, requires_grad=True)
    scale = (0.5 + uniform(images, tokens, seed=seed + 3)).requires_grad_() if scaled else None
    lengths = torch.randint(1, tokens + 1, (images, 1), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(tokens) < lengths if masked else None
    inputs = (text, image, temperature, *([] if scale is None else [scale]))
    ours = vl_cabs(text, image, temperature, token_mask=mask, value_scale=scale)
    theirs = vl_cabs_reference(text, image, temperature, token_mask=mask, value_scale=scale)
    agree(ours, theirs, inputs)


@settings(max_examples=20)
@given(texts=st.integers(1, 12), tokens=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_the_dot_product_is_the_ablation_s_formula(texts: int, tokens: int, seed: int) -> None:
    text = (unit(texts, 8, seed=seed) * 3).detach().requires_grad_()
    image = (unit(2, tokens, 8, seed=seed + 1) * (1 + uniform(2, tokens, 1, seed=seed))).detach().requires_grad_()
    attention = (torch.einsum("td,bnd->btn", text, image) / 8**0.5).softmax(dim=-1)
    theirs = F.cosine_similarity(text, torch.einsum("btn,bnd->btd", attention, image), dim=-1)
    agree(vl_cabs(text, image, 8**0.5, similarity="dot"), theirs, (text, image))


def test_both_forms_of_the_norm_are_exercised_by_the_sizes_above() -> None:
    many_texts, few_texts = (Attention(torch.empty(t, 24), torch.empty(1, 5, 24), None, 0.1, False) for t in (40, 2))
    assert many_texts.gram
    assert not few_texts.gram


@pytest.mark.parametrize("texts", [3, 40], ids=["direct", "gram"])
def test_gradients_match_finite_differences(texts: int) -> None:
    text, image = unit(texts, 7, seed=0), unit(2, 3, 7, seed=1)
    temperature = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    scale = (0.5 + uniform(2, 3, seed=2)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q, u, tau, m: vl_cabs(q, u, tau, value_scale=m), (text, image, temperature, scale), fast_mode=texts > 3
    )


@pytest.mark.parametrize("texts", [70, 300], ids=["direct", "gram"])
def test_tiles_do_not_change_the_result(texts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text, image = unit(texts, 50, seed=0), unit(2, 16, 50, seed=1)

    def run() -> tuple[Tensor, ...]:
        out = vl_cabs(text, image, 0.07)
        return out, *torch.autograd.grad(out.square().sum(), (text, image))

    whole = run()
    monkeypatch.setattr("rayzero.ops.similarity_tiles._TILE_ELEMENTS", 1)
    for got, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_masked_tokens_do_not_exist() -> None:
    text, image = unit(3, 6, seed=0), unit(2, 5, 6, seed=1)
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    masked = vl_cabs(text, image, 0.1, token_mask=mask)
    torch.testing.assert_close(masked[:1], vl_cabs(text, image[:1, mask[0]], 0.1), rtol=0, atol=1e-14)
    torch.testing.assert_close(masked[1:], vl_cabs(text, image[1:], 0.1), rtol=0, atol=1e-14)
    gradient = torch.autograd.grad(masked.sum(), image)[0]
    assert torch.count_nonzero(gradient[0, ~mask[0]]) == 0


@pytest.mark.parametrize("shape", [(1, 3, 5), (4, 1, 5), (1, 1, 1)], ids=["one image", "one text", "one of each"])
def test_single_rows_keep_their_axes(shape: tuple[int, int, int]) -> None:
    images, texts, tokens = shape
    assert vl_cabs(unit(texts, 4, seed=0), unit(images, tokens, 4, seed=1), 0.07).shape == (images, texts)


@pytest.mark.parametrize("tau", [0.01, 0.029, 0.031, 1.0])
@pytest.mark.parametrize("texts", [2, 200], ids=["direct", "gram"])
def test_float32_stays_in_range_at_every_temperature(tau: float, texts: int) -> None:
    text = F.normalize(torch.randn(texts, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    # Cosines of -1 and 1 are the ends of the exponent's range.
    tokens = torch.stack([-text[:1].expand(9, -1), text[:1].expand(9, -1)]).contiguous().requires_grad_()
    scores = vl_cabs(text, tokens, tau)
    torch.testing.assert_close(scores, torch.stack([-(text @ text[0]), text @ text[0]]), rtol=0, atol=1e-5)
    scores.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()


def test_tokens_that_cancel_score_zero_without_gradient() -> None:
    text = torch.tensor([[1.0, 0.0]], requires_grad=True)
    tokens = torch.tensor([[[0.0, 1.0], [0.0, -1.0]]], requires_grad=True)
    score = vl_cabs(text, tokens, 0.1)
    score.sum().backward()
    assert score.item() == 0.0
    assert text.grad is not None
    assert tokens.grad is not None
    assert torch.count_nonzero(text.grad) == torch.count_nonzero(tokens.grad) == 0


def test_half_precision_rows_are_computed_in_float32() -> None:
    text, image = unit(9, 64, seed=0).detach(), unit(3, 30, 64, seed=1).detach()
    rounded = text.bfloat16().requires_grad_(), image.bfloat16().requires_grad_()
    scores = vl_cabs(*rounded, 0.07)
    assert scores.dtype == torch.float32
    same_rows = vl_cabs_reference(*(rows.detach().double() for rows in rounded), 0.07)
    torch.testing.assert_close(scores.double(), same_rows, rtol=0, atol=2e-6)
    assert (same_rows - vl_cabs_reference(text, image, 0.07)).abs().max() < 2e-3
    # Also with few tokens, where products of tokens are formed, and in a region that rounds products.
    few = rounded[1][:, :4]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(vl_cabs(*rounded, 0.07), scores, rtol=0, atol=0)
        cast = vl_cabs(rounded[0], few, 0.07)
    torch.testing.assert_close(cast, vl_cabs(rounded[0], few, 0.07), rtol=0, atol=0)
    assert [grad.dtype for grad in torch.autograd.grad(scores.sum(), rounded)] == [torch.bfloat16] * 2


def test_no_tensor_of_pairs_by_tokens_is_saved() -> None:
    text, image = unit(64, 16, seed=0), unit(8, 50, 16, seed=1)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        vl_cabs(text, image, 0.07)
    assert sum(saved) == text.numel() + image.numel() + 1 + 2 * 8 * 64


@pytest.mark.parametrize(("text", "tokens"), [((3, 4), (2, 5, 6)), ((4,), (2, 5, 4)), ((3, 4), (5, 4))])
def test_shapes_that_do_not_fit_are_refused(text: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(T, D\) and \(B, N, D\)"):
        vl_cabs(torch.rand(text), torch.rand(tokens), 0.1)


@pytest.mark.parametrize(("text", "tokens"), [((0, 4), (2, 5, 4)), ((3, 4), (0, 5, 4)), ((3, 4), (2, 0, 4))])
def test_empty_problems_are_refused(text: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one text, image and token"):
        vl_cabs(torch.rand(text), torch.rand(tokens), 0.1)


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan"), float("inf"), torch.ones(2)])
def test_temperatures_that_are_none_are_refused(temperature: float | Tensor) -> None:
    with pytest.raises(ValueError, match="temperature must be one positive number"):
        vl_cabs(torch.rand(2, 3), torch.rand(2, 4, 3), temperature)


def test_rows_of_two_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="share dtype and device"):
        vl_cabs(torch.rand(2, 3), torch.rand(2, 4, 3, dtype=torch.float64), 0.1)


def test_an_image_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="token_mask"):
        vl_cabs(torch.rand(2, 3), torch.rand(2, 4, 3), 0.1, token_mask=torch.zeros(2, 4, dtype=torch.bool))


@pytest.mark.parametrize("scale", [torch.ones(2, 3), torch.zeros(2, 4)])
def test_value_scales_that_do_not_fit_are_refused(scale: Tensor) -> None:
    with pytest.raises(ValueError, match="value_scale"):
        vl_cabs(torch.rand(2, 3), torch.rand(2, 4, 3), 0.1, value_scale=scale)
