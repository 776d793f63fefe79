"""vl_cabs against the published formula, forward and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rayzero.ops import vl_cabs
from rayzero.ops.similarity_attention import vl_cabs_reference


def unit(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=generator), dim=-1).requires_grad_()


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 5),
    texts=st.integers(1, 7),
    tokens=st.integers(1, 20),
    width=st.integers(2, 12),
    tau=st.floats(0.01, 1.0),
    seed=st.integers(0, 10_000),
)
def test_equals_the_published_formula(images: int, texts: int, tokens: int, width: int, tau: float, seed: int) -> None:
    text, image = unit(texts, width, seed=seed), unit(images, tokens, width, seed=seed + 1)
    temperature = torch.tensor([tau], dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(images, texts, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 2))
    ours, theirs = vl_cabs(text, image, temperature), vl_cabs_reference(text, image, temperature)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    inputs = (text, image, temperature)
    for mine, oracle in zip(
        torch.autograd.grad((ours * upstream).sum(), inputs),
        torch.autograd.grad((theirs * upstream).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, oracle, rtol=1e-9, atol=1e-10)


def test_gradients_match_finite_differences() -> None:
    text, image = unit(3, 5, seed=0), unit(2, 4, 5, seed=1)
    temperature = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(vl_cabs, (text, image, temperature))


def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    text, image = unit(6, 8, seed=0), unit(5, 9, 8, seed=1)
    whole = vl_cabs(text, image, 0.07)
    monkeypatch.setattr("rayzero.ops.similarity_attention._TILE_ELEMENTS", 1)
    torch.testing.assert_close(vl_cabs(text, image, 0.07), whole, rtol=0, atol=1e-14)


def test_masked_tokens_do_not_exist() -> None:
    text, image = unit(3, 6, seed=0), unit(2, 5, 6, seed=1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    masked = vl_cabs(text, image, 0.1, token_mask=mask)
    torch.testing.assert_close(masked[:1], vl_cabs(text, image[:1, :3], 0.1), rtol=0, atol=1e-14)
    torch.testing.assert_close(masked[1:], vl_cabs(text, image[1:], 0.1), rtol=0, atol=1e-14)
    gradient = torch.autograd.grad(masked.sum(), image)[0]
    assert torch.count_nonzero(gradient[0, 3:]) == 0


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


def test_an_image_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="token_mask"):
        vl_cabs(torch.rand(2, 3), torch.rand(2, 4, 3), 0.1, token_mask=torch.zeros(2, 4, dtype=torch.bool))
