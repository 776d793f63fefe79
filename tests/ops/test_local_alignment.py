"""local_alignment against the published formula, caption by caption, forward and gradients, in float64."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayzero.ops import local_alignment
from rayzero.ops.local_alignment import local_alignment_reference

Problem = tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]


def problem(images: int, captions: list[int], patches: int, width: int, *, seed: int, holes: bool = False) -> Problem:
    """Patches, words, their masks (with ``holes`` also inside a caption) and the three temperatures."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    words = max(captions)
    word_mask = torch.arange(words) < torch.tensor(captions)[:, None]
    if holes:
        word_mask &= torch.rand(word_mask.shape, generator=generator) < 0.7
        word_mask[:, 0] = True
    patch_mask = torch.rand(images, patches, generator=generator) < 0.6
    patch_mask[:, -1] = True
    temperatures = [torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (4.0, 5.0, 10.0)]
    return normal(images, patches, width), normal(len(captions), words, width), word_mask, patch_mask, temperatures


@settings(max_examples=40)
@given(
    images=st.integers(1, 4),
    captions=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    patches=st.integers(1, 14),
    width=st.integers(1, 9),
    masked=st.booleans(),
    holes=st.booleans(),
    t=st.tuples(*[st.floats(1.0, 20.0)] * 3),
    seed=st.integers(0, 10_000),
)
def test_equals_the_published_formula(
    images: int,
    captions: list[int],
    patches: int,
    width: int,
    masked: bool,
    holes: bool,
    t: tuple[float, float, float],
    seed: int,
) -> None:
    image, word, word_mask, patch_mask, _ = problem(images, captions, patches, width, seed=seed, holes=holes)
    temperatures = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in t]
    mask = patch_mask if masked else None
    ours = local_alignment(image, word, word_mask, *temperatures, patch_mask=mask)
    theirs = local_alignment_reference(image, word, word_mask, *temperatures, patch_mask=mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    inputs = (image, word, *temperatures)
    for mine, oracle in zip(
        torch.autograd.grad((ours * upstream).sum(), inputs),
        torch.autograd.grad((theirs * upstream).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, oracle, rtol=1e-9, atol=1e-10)


def test_gradients_match_finite_differences() -> None:
    image, word, word_mask, patch_mask, temperatures = problem(2, [3, 1], 4, 5, seed=0)
    assert torch.autograd.gradcheck(
        lambda c, w, *t: local_alignment(c, w, word_mask, *t, patch_mask=patch_mask), (image, word, *temperatures)
    )


@pytest.mark.parametrize("tile", [1, 100])
def test_tiles_do_not_change_the_result(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one caption, and of several: a tile's memory is used again by the next image."""
    image, word, word_mask, patch_mask, temperatures = problem(3, [5, 2, 7, 7, 1], 6, 4, seed=1, holes=True)
    upstream = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = []
    for elements in (1 << 30, tile):
        # By the module itself: the package gives the function under the same name.
        monkeypatch.setattr(sys.modules["rayzero.ops.local_alignment"], "_TILE_ELEMENTS", elements)
        scores = local_alignment(image, word, word_mask, *temperatures, patch_mask=patch_mask)
        results.append((scores, *torch.autograd.grad((scores * upstream).sum(), (image, word, *temperatures))))
    for whole, tiled in zip(*results, strict=True):
        torch.testing.assert_close(tiled, whole, rtol=1e-12, atol=1e-12)


def test_the_sharpest_temperatures_stay_finite() -> None:
    # exp(100 cos) overflows fp32 in the published code (spec, defect 2).
    image = torch.ones(1, 2, 3, requires_grad=True)
    word = torch.ones(2, 4, 3, requires_grad=True)
    score = local_alignment(image, word, torch.ones(2, 4, dtype=torch.bool), 100.0, 100.0, 100.0)
    score.sum().backward()
    assert score.isfinite().all()
    assert image.grad is not None
    assert word.grad is not None
    assert image.grad.isfinite().all()
    assert word.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t1", [1.0, 100.0, 200.0])
def test_sharp_attention_over_patches_equals_the_formula(dtype: torch.dtype, t1: float) -> None:
    image, word, word_mask, patch_mask, _ = problem(3, [4, 2, 5], 6, 4, seed=5)
    inputs = [image.to(dtype), word.to(dtype), torch.tensor(t1, dtype=dtype, requires_grad=True)]
    results = []
    for form in (local_alignment, local_alignment_reference):
        scores = form(inputs[0], inputs[1], word_mask, inputs[2], 5.0, 10.0, patch_mask=patch_mask)
        results.append((scores, *torch.autograd.grad(scores.sum(), inputs)))
    exact = {torch.float32: 2e-3, torch.float64: 1e-9}[dtype]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=exact, atol=exact)


def test_features_of_zeros_give_no_nan() -> None:
    image, word = torch.zeros(1, 2, 3, requires_grad=True), torch.zeros(1, 2, 3, requires_grad=True)
    local_alignment(image, word, torch.ones(1, 2, dtype=torch.bool), 4.0, 5.0, 10.0).sum().backward()
    assert image.grad is not None
    assert word.grad is not None
    assert image.grad.isfinite().all()
    assert word.grad.isfinite().all()


def test_no_tensor_of_pairs_by_patches_is_saved() -> None:
    image, word, word_mask, _, temperatures = problem(4, [6] * 8, 50, 16, seed=3)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        local_alignment(image, word, word_mask, *temperatures)
    pairs = 4 * 8 * 6
    assert sum(saved) <= image.numel() + word.numel() + 8 * pairs
    assert max(saved) < pairs * 50


@pytest.mark.parametrize(("patches", "words"), [((2, 3, 4), (2, 3, 5)), ((3, 4), (2, 3, 4)), ((2, 3, 4), (3, 4))])
def test_shapes_that_do_not_fit_are_refused(patches: tuple[int, ...], words: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, S, D\) and \(T, L, D\)"):
        local_alignment(torch.rand(patches), torch.rand(words), torch.ones(words[:2], dtype=torch.bool), 4, 5, 10)


def test_texts_without_words_and_images_without_views_are_refused() -> None:
    image, word, mask = torch.rand(2, 3, 4), torch.rand(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    empty = torch.tensor([[True] * 5, [False] * 5])
    with pytest.raises(ValueError, match="row 1 of word_mask"):
        local_alignment(image, word, empty, 4, 5, 10)
    with pytest.raises(ValueError, match="row 0 of patch_mask"):
        local_alignment(image, word, mask, 4, 5, 10, patch_mask=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="must be boolean"):
        local_alignment(image, word, mask.long(), 4, 5, 10)
    with pytest.raises(ValueError, match="nothing to align"):
        local_alignment(image, word[:0], mask[:0], 4, 5, 10)


def test_half_precision_is_computed_in_float32() -> None:
    """Temperatures of 14, which both start at, would make a rounded cosine a score that is off by one."""
    image, word, word_mask, patch_mask, _ = problem(3, [2, 5, 4], 9, 32, seed=4)
    rounded = [rows.detach().bfloat16().requires_grad_() for rows in (image, word)]
    temperatures = (14.3, 14.3, 14.3)
    scores = local_alignment(*rounded, word_mask, *temperatures, patch_mask=patch_mask)
    assert scores.dtype == torch.float32
    exact = [rows.detach().double() for rows in rounded]
    expected = local_alignment_reference(*exact, word_mask, *temperatures, patch_mask=patch_mask)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        again = local_alignment(*rounded, word_mask, *temperatures, patch_mask=patch_mask)
    torch.testing.assert_close(again, scores, rtol=0, atol=0)
    assert [grad.dtype for grad in torch.autograd.grad(scores.sum(), rounded)] == [torch.bfloat16] * 2
