"""Local alignment of patches and words (ALTA, the GLoRIA form), exact, with no saved tensor of pairs by patches.

Each patch of an image spreads over the words of a caption, each word then attends over the patches by what they gave
it, and the caption's score gathers how well every word agrees with its weighted patch (ALTA spec, section 4):

    E = C W^T,  P = softmax_words(E),  A = softmax_patches(t1 P^T),  r_w = cos(W_w, (A C)_w)
    score = t3 log sum_w exp(t2 r_w)

Captions are sorted by length and computed in tiles cut to their own longest, one image at a time, and the backward
pass recomputes a tile. A cosine does not know the length of its arguments, so the weights of patches need no
normaliser: exp(t1 P^T) stands for A, as long as nothing can overflow, and on the way back no row sum is missed, for the
gradient is orthogonal to the weighted patch. What remains over (words, patches) are a softmax and an exponential each
way and four products after them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rayzero.ops.precision import as_given, wide
from rayzero.ops.recomputation import computed_again

# Elements of one (captions, words, patches) tile: a few tiles fit in a processor's cache.
_TILE_ELEMENTS = 1 << 18
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
        patches: (B, S, D) local features of images, of any length.
        words: (T, L, D) local features of captions, of any length.
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


def _tiles(words: Tensor, mask: Tensor, patches: int, t1: Tensor) -> Iterator[_Tile]:
    """The captions by length, as many to a tile as fit."""
    # P is at most 1, so exp(t1 P) at most exp(t1): its square, in a norm, has to leave room for the sum over patches.
    plain = float(t1) < math.log(torch.finfo(words.dtype).max) / 3
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths, order = (mask * positions).amax(dim=1).sort()
    ends = lengths.tolist()
    start = 0
    while start < len(ends):
        stop = start + 1
        while stop < len(ends) and (stop + 1 - start) * ends[stop] * patches <= _TILE_ELEMENTS:
            stop += 1
        yield _Tile.cut(words, mask, order[start:stop], ends[stop - 1], plain)
        start = stop


@dataclass(frozen=True)
class _Tile:
    """Captions (indices), their words (t, L, D) up to the longest, and the same with their ``_bias`` (t L, D + 1).

    ``plain``: the weights of patches are exponentials without a normaliser.
    """

    captions: Tensor
    words: Tensor
    biased: Tensor
    plain: bool

    @classmethod
    def cut(cls, words: Tensor, mask: Tensor, captions: Tensor, length: int, plain: bool) -> _Tile:
        cut = words[captions, :length]
        return cls(captions, cut, _with_column(cut, _bias(mask[captions, :length], cut)).flatten(0, 1), plain)

    def rows(self, values: Tensor) -> Tensor:
        """The captions' entries of ``values`` (B, T, L'), as (B, t L, 1)."""
        return values[:, self.captions, : self.words.shape[1]].flatten(1).unsqueeze(-1)

    def attend(self, image: Tensor, biased: Tensor, t1: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """P^T (t, L, S), weights of patches (t, L, S) and the weighted patches (t L, D) of one ``image`` (S, D).

        The weights are A times a positive number of each word's own. ``biased`` (S, D + 1) is the image and a column
        of ones.
        """
        spread = (self.biased @ biased.T).view(*self.words.shape[:2], -1).softmax(dim=1)
        weights = spread * t1
        if kept is not None:
            weights.masked_fill_(~kept, -torch.inf)
        weights = weights.exp_() if self.plain else weights.softmax(dim=-1)
        return spread, weights, weights.flatten(0, 1) @ image


def _bias(mask: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(~mask, -torch.inf)


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
        biased = _with_column(patches, patches.new_ones(patches.shape[:2]))
        for tile in _tiles(words, word_mask, patches.shape[1], t1):
            flat, shape = tile.words.flatten(0, 1), tile.words.shape[:2]
            for index, image in enumerate(patches):
                kept = None if patch_mask is None else patch_mask[index]
                _, _, weighted = tile.attend(image, biased[index], t1, kept)
                norms[index, tile.captions, : shape[1]] = torch.linalg.vector_norm(weighted, dim=-1).view(shape)
                dots[index, tile.captions, : shape[1]] = weighted.mul_(flat).sum(dim=-1).view(shape)
        lengths = torch.linalg.vector_norm(words, dim=-1)
        cosines = dots.div_((norms * lengths).clamp_(min=_SMALLEST_NORM)).masked_fill_(~word_mask, 0.0)
        ctx.save_for_backward(patches, words, t1, word_mask, patch_mask, cosines, norms)
        return cosines

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        patches, words, t1, word_mask, patch_mask, cosines, norms = ctx.saved_tensors
        grad_patches, grad_words, grad_t1 = torch.zeros_like(patches), torch.zeros_like(words), torch.zeros_like(t1)
        lengths = torch.linalg.vector_norm(words, dim=-1).clamp_(min=_SMALLEST_NORM)
        upstream, norms = grads[0].masked_fill(~word_mask, 0.0), norms.clamp(min=_SMALLEST_NORM)
        # With u = W / |W| and d = A C / |A C|: dr/d(A C) = (u - r d) / |A C|, dr/dW = (d - r u) / |W|.
        direct, inward = upstream / (norms * lengths), upstream * cosines / norms.square()
        biased, scaled = _with_column(patches, patches.new_ones(patches.shape[:2])), patches * t1
        for tile in _tiles(words, word_mask, patches.shape[1], t1):
            flat, tile_direct, tile_inward = tile.words.flatten(0, 1), tile.rows(direct), tile.rows(inward)
            grad_tile = torch.zeros_like(flat)
            for index, image in enumerate(patches):
                kept = None if patch_mask is None else patch_mask[index]
                with computed_again():
                    spread, weights, weighted = tile.attend(image, biased[index], t1, kept)
                grad_tile.addcmul_(tile_direct[index], weighted)
                grad_weighted = weighted.mul_(-tile_inward[index]).addcmul_(tile_direct[index], flat)
                # Through the weights of patches and the softmax over words; their scale t1 is in the smaller factor.
                slope = torch.matmul(grad_weighted, scaled[index].T).view_as(weights).mul_(weights).mul_(spread)
                through = slope.sum(dim=1, keepdim=True)
                grad_t1 += through.sum()
                slope.addcmul_(spread, through, value=-1.0)
                joined = slope.flatten(0, 1)
                grad_tile.addmm_(joined, image)
                grad_patches[index].addmm_(joined.T, flat).addmm_(weights.flatten(0, 1).T, grad_weighted)
            grad_words[tile.captions, : tile.words.shape[1]] = grad_tile.view_as(tile.words)
        radial = (upstream * cosines).sum(dim=0) / lengths.square()
        grad_words.addcmul_(words, radial.unsqueeze(-1), value=-1.0)
        return grad_patches, grad_words, grad_t1 / t1, None, None
