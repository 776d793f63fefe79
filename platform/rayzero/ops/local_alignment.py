"""Local alignment of patches and words (ALTA, the GLoRIA form), exact, with no saved tensor of pairs by patches.

Each patch of an image spreads over the words of a caption, each word then attends over the patches by what they gave
it, and the caption's score gathers how well every word agrees with its weighted patch (ALTA spec, section 4):

    E = C W^T,  P = softmax_words(E),  A = softmax_patches(t1 P^T),  r_w = cos(W_w, (A C)_w)
    score = t3 log sum_w exp(t2 r_w)

Captions are sorted by length and computed in tiles cut to their own longest, one image at a time, and the backward
pass recomputes a tile. On the way back the softmax over patches needs no row sum, for the gradient is orthogonal to the
weighted patch (to rounding: in float32 that shows in the gradient of t1 alone, where it is almost 0). What remains over
(words, patches) are two softmaxes each way and four products after them, the two that sum over words joined into one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rayzero.ops.precision import as_given, wide
from rayzero.ops.recomputation import computed_again

# Elements of one tile, (captions, words, patches) or (captions, words, D): a few tiles fit in a processor's cache.
_TILE_ELEMENTS = 1 << 17
_SMALLEST_NORM = 1e-8


def local_alignment(
    patches: Tensor,
    words: Tensor,
    word_mask: Tensor,
    word_temperature: Tensor | float,
    pool_temperature: Tensor | float,
    score_temperature: Tensor | float,
    *,
    patch_mask: Tensor | None = None,
) -> Tensor:
    """Scores (B, T) of each caption for each image.

    Args:
        patches: (B, S, D) local features of images, of any length; finite where masked, too.
        words: (T, L, D) local features of captions, likewise.
        word_mask: (T, L) boolean, false where a word is padding. Every caption keeps at least one word.
        word_temperature: t1, sharpens each word's attention over patches. Temperatures are positive scalars, floats
            or tensors of one element (differentiable).
        pool_temperature: t2, sharpens the pooling of a caption's words.
        score_temperature: t3, multiplies the score.
        patch_mask: (B, S) boolean, false where a patch is padding (a view that a study has not). Every image keeps at
            least one patch.

    Half precision is computed, and scores are given, in float32: t2 t3 multiplies the error of a cosine by hundreds.

    Raises:
        ValueError: shapes that do not fit, or a row without a word or a patch.
    """
    _check(patches, words, word_mask, patch_mask)
    patches, words = wide(patches), wide(words)
    t1, t2, t3 = (
        torch.as_tensor(t, dtype=patches.dtype, device=patches.device).reshape(())
        for t in (word_temperature, pool_temperature, score_temperature)
    )
    with as_given(patches):
        cosines: Tensor = _WordCosines.apply(patches, words, t1, word_mask, patch_mask)
    return t3 * (t2 * cosines).masked_fill(~word_mask, -torch.inf).logsumexp(dim=-1)


def local_alignment_reference(
    patches: Tensor,
    words: Tensor,
    word_mask: Tensor,
    word_temperature: Tensor | float,
    pool_temperature: Tensor | float,
    score_temperature: Tensor | float,
    *,
    patch_mask: Tensor | None = None,
) -> Tensor:
    """The formula as published, caption by caption, the oracle for ``local_alignment``."""
    columns = []
    for caption, mask in zip(words, word_mask, strict=True):
        caption = caption[mask].expand(patches.shape[0], -1, -1)
        spread = (patches @ caption.transpose(1, 2)).softmax(dim=-1)
        logits = word_temperature * spread.transpose(1, 2)
        if patch_mask is not None:
            logits = logits.masked_fill(~patch_mask.unsqueeze(1), -torch.inf)
        context = logits.softmax(dim=-1) @ patches
        cosine = torch.nn.functional.cosine_similarity(caption, context, dim=-1, eps=_SMALLEST_NORM)
        columns.append(score_temperature * (pool_temperature * cosine).logsumexp(dim=-1))
    return torch.stack(columns, dim=1)


def _check(patches: Tensor, words: Tensor, word_mask: Tensor, patch_mask: Tensor | None) -> None:
    if patches.ndim != 3 or words.ndim != 3 or patches.shape[2] != words.shape[2]:
        raise ValueError(
            f"patches {tuple(patches.shape)} and words {tuple(words.shape)} must be (B, S, D) and (T, L, D)"
        )
    if 0 in words.shape or 0 in patches.shape:
        raise ValueError(f"nothing to align: patches {tuple(patches.shape)}, words {tuple(words.shape)}")
    for name, mask, shape in (("word_mask", word_mask, words.shape), ("patch_mask", patch_mask, patches.shape)):
        if mask is None:
            continue
        if mask.dtype != torch.bool or mask.shape != shape[:2]:
            raise ValueError(f"{name} {tuple(mask.shape)} ({mask.dtype}) must be boolean {tuple(shape[:2])}")
        if not bool(mask.any(dim=1).all()):
            empty = int((~mask.any(dim=1)).nonzero()[0])
            raise ValueError(f"row {empty} of {name} has no true entry: a text without words or an image without views")


def _tiles(words: Tensor, mask: Tensor, patches: int) -> Iterator[_Tile]:
    """The captions by length, as many to a tile as fit."""
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths, order = (mask * positions).amax(dim=1).sort()
    ends, widest = lengths.tolist(), max(patches, words.shape[2])
    start = 0
    while start < len(ends):
        stop = start + 1
        while stop < len(ends) and (stop + 1 - start) * ends[stop] * widest <= _TILE_ELEMENTS:
            stop += 1
        yield _Tile(words, mask, order[start:stop], ends[stop - 1], patches)
        start = stop


class _Tile:
    """A few captions, and the memory that every image uses again: fresh pages cost as much as the arithmetic on them.

    ``captions``: t indices. ``words`` (t L, D), up to their longest; rows of padding too. ``spread`` (t L, S): P^T.
    ``slope_and_weights`` (2 t L, S): scratch that becomes the slope of E, and A. ``words_and_inward`` (2 t L, D): the
    words, and the gradient of the weighted patches. ``weighted`` (t L, D): the weighted patches.
    """

    def __init__(self, words: Tensor, mask: Tensor, captions: Tensor, length: int, patches: int) -> None:
        cut, real = words[captions, :length], mask[captions, :length]
        self.captions = captions
        self.shape = (len(captions), length, patches)
        self.words = cut.flatten(0, 1)
        bias = torch.zeros_like(real, dtype=words.dtype).masked_fill_(~real, -torch.inf)
        self._biased = _with_column(cut, bias).flatten(0, 1)
        rows, width = self.words.shape
        self.spread, self.weighted = words.new_empty(rows, patches), words.new_empty(rows, width)
        self.slope_and_weights = words.new_empty(2 * rows, patches)
        self.slope, self.weights = self.slope_and_weights.chunk(2)
        self.words_and_inward = self.words.repeat(2, 1)
        self.inward = self.words_and_inward[rows:]

    def rows(self, values: Tensor) -> tuple[Tensor, ...]:
        """The captions' entries of ``values`` (B, T, L'), as a column (t L, 1) for each image."""
        return values[:, self.captions, : self.shape[1]].flatten(1).unsqueeze(-1).unbind()

    def place(self, values: Tensor, rows: Tensor) -> None:
        """Put ``rows`` (B, t L) where the captions are in ``values`` (B, T, L')."""
        values[:, self.captions, : self.shape[1]] = rows.unflatten(1, self.shape[:2])

    def attend(self, image: Tensor, biased: Tensor, t1: Tensor, kept: Tensor | None) -> None:
        """Fill ``spread``, ``weights`` and ``weighted`` for one ``image`` (S, D); ``slope`` is overwritten.

        ``biased`` (S, D + 1) is the image and a column of ones.
        """
        logits = torch.mm(self._biased, biased.T, out=self.slope)
        torch.softmax(logits.view(self.shape), dim=1, out=self.spread.view(self.shape))
        torch.mul(self.spread, t1, out=logits)
        if kept is not None:
            logits.masked_fill_(~kept, -torch.inf)
        torch.softmax(logits, dim=-1, out=self.weights)
        torch.mm(self.weights, image, out=self.weighted)


def _with_column(rows: Tensor, column: Tensor) -> Tensor:
    """``rows`` (..., D) and one more entry each: a product with it masks on the way, without a pass of its own."""
    return torch.cat([rows, column.unsqueeze(-1)], dim=-1)


class _WordCosines(torch.autograd.Function):
    """Cosines (B, T, L) of each word and its weighted patch; 0 on padding."""

    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, words: Tensor, t1: Tensor, word_mask: Tensor, patch_mask: Tensor | None
    ) -> Tensor:
        dots, norms = (patches.new_zeros((patches.shape[0], *word_mask.shape)) for _ in range(2))
        biased, masks = _biased(patches), _masks(patches, patch_mask)
        for tile in _tiles(words, word_mask, patches.shape[1]):
            tile_dots, tile_norms = (patches.new_empty((patches.shape[0], len(tile.words))) for _ in range(2))
            for index, image in enumerate(patches.unbind()):
                tile.attend(image, biased[index], t1, masks[index])
                torch.linalg.vector_norm(tile.weighted, dim=-1, out=tile_norms[index])
                torch.linalg.vecdot(tile.weighted, tile.words, out=tile_dots[index])
            tile.place(dots, tile_dots)
            tile.place(norms, tile_norms)
        lengths = torch.linalg.vector_norm(words, dim=-1)
        denominators = norms.clamp(min=_SMALLEST_NORM) * lengths.clamp(min=_SMALLEST_NORM)
        cosines = dots.div_(denominators).masked_fill_(~word_mask, 0.0)
        ctx.save_for_backward(patches, words, t1, word_mask, patch_mask, cosines, norms)
        return cosines

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        patches, words, t1, word_mask, patch_mask, cosines, norms = ctx.saved_tensors
        grad_patches, grad_words, grad_t1 = torch.zeros_like(patches), torch.zeros_like(words), torch.zeros_like(t1)
        lengths = torch.linalg.vector_norm(words, dim=-1).clamp_(min=_SMALLEST_NORM)
        upstream, norms = grads[0].masked_fill(~word_mask, 0.0), norms.clamp(min=_SMALLEST_NORM)
        # With u = W / |W| and d = A C / |A C|: dr/d(A C) = (u - r d) / |A C|, dr/dW = (d - r u) / |W|.
        direct, radial = upstream / (norms * lengths), -upstream * cosines / norms.square()
        biased, masks, scaled = _biased(patches), _masks(patches, patch_mask), (patches * t1).unbind()
        for tile in _tiles(words, word_mask, patches.shape[1]):
            along, against, grad_tile = tile.rows(direct), tile.rows(radial), torch.zeros_like(tile.words)
            spread, slope = tile.spread.view(tile.shape), tile.slope.view(tile.shape)
            for index, image in enumerate(patches.unbind()):
                with computed_again():
                    tile.attend(image, biased[index], t1, masks[index])
                grad_tile.addcmul_(along[index], tile.weighted)
                torch.mul(tile.weighted, against[index], out=tile.inward).addcmul_(along[index], tile.words)
                # Through the softmax over patches and that over words; the scale t1 is in the smaller factor.
                torch.mm(tile.inward, scaled[index].T, out=tile.slope).mul_(tile.weights).mul_(tile.spread)
                through = slope.sum(dim=1, keepdim=True)
                grad_t1 += through.sum()
                slope.addcmul_(spread, through, value=-1.0)
                grad_tile.addmm_(tile.slope, image)
                grad_patches[index].addmm_(tile.slope_and_weights.T, tile.words_and_inward)
            grad_words[tile.captions, : tile.shape[1]] = grad_tile.unflatten(0, tile.shape[:2])
        shrink = (upstream * cosines).sum(dim=0) / lengths.square()
        grad_words.addcmul_(words, shrink.unsqueeze(-1), value=-1.0)
        return grad_patches, grad_words, grad_t1 / t1, None, None


def _biased(patches: Tensor) -> tuple[Tensor, ...]:
    return _with_column(patches, patches.new_ones(patches.shape[:2])).unbind()


def _masks(patches: Tensor, mask: Tensor | None) -> Sequence[Tensor | None]:
    return [None] * len(patches) if mask is None else mask.unbind()
