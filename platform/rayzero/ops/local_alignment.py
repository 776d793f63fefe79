"""Local alignment of patches and words (ALTA, the GLoRIA form), exact, with no saved tensor of pairs by patches.

Each patch of an image spreads over the words of a caption, each word then attends over the patches by what they gave
it, and the caption's score gathers how well every word agrees with its weighted patch (ALTA spec, section 4):

    E = C W^T,  P = softmax_words(E),  A = softmax_patches(t1 P^T),  r_w = cos(W_w, (A C)_w)
    score = t3 log sum_w exp(t2 r_w)

Captions are sorted by length and computed in tiles cut to their own longest, one image at a time; the backward pass
recomputes a tile and needs the cosines and norms of the forward pass alone. A cosine's gradient is orthogonal to the
weighted patch, so the softmax over patches needs no row sum on the way back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Elements of one (captions, words, patches) tile: a few tiles fit in a processor's cache.
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
        patches: (B, S, D) local features of images, of any length.
        words: (T, L, D) local features of captions, of any length.
        word_mask: (T, L) boolean, false where a word is padding. Every caption keeps at least one word.
        word_temperature: t1, sharpens each word's attention over patches. Temperatures are positive scalars, floats
            or tensors of one element (differentiable).
        pool_temperature: t2, sharpens the pooling of a caption's words.
        score_temperature: t3, multiplies the score.
        patch_mask: (B, S) boolean, false where a patch is padding (a view that a study has not). Every image keeps at
            least one patch.

    Raises:
        ValueError: shapes that do not fit, or a row without a word or a patch.
    """
    _check(patches, words, word_mask, patch_mask)
    t1, t2, t3 = (
        torch.as_tensor(t, dtype=patches.dtype, device=patches.device).reshape(())
        for t in (word_temperature, pool_temperature, score_temperature)
    )
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


def _tiles(mask: Tensor, patches: int) -> Iterator[tuple[Tensor, int]]:
    """Captions (indices, by length) and the words that the longest of them needs."""
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths, order = (mask * positions).amax(dim=1).sort()
    ends = lengths.tolist()
    start = 0
    while start < len(ends):
        stop = start + 1
        while stop < len(ends) and (stop + 1 - start) * ends[stop] * patches <= _TILE_ELEMENTS:
            stop += 1
        yield order[start:stop], ends[stop - 1]
        start = stop


def _attend(
    words: Tensor, image: Tensor, padding: Tensor | None, t1: Tensor, kept: Tensor | None
) -> tuple[Tensor, Tensor]:
    """P^T and A (t, L, S) of one image: how each patch spreads over a caption's words, how each word attends."""
    similarity = torch.matmul(words, image.T)
    if padding is not None:
        similarity.masked_fill_(padding, -torch.inf)
    spread = similarity.softmax(dim=1)
    logits = torch.mul(spread, t1, out=similarity)
    if kept is not None:
        logits.masked_fill_(~kept, -torch.inf)
    return spread, logits.softmax(dim=-1)


class _WordCosines(torch.autograd.Function):
    """Cosines (B, T, L) of each word and its weighted patch; 0 on padding."""

    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, words: Tensor, t1: Tensor, word_mask: Tensor, patch_mask: Tensor | None
    ) -> Tensor:
        cosines, norms = (patches.new_zeros((patches.shape[0], *word_mask.shape)) for _ in range(2))
        for captions, length in _tiles(word_mask, patches.shape[1]):
            tile, padding = _tile(words, word_mask, captions, length)
            lengths = torch.linalg.vector_norm(tile, dim=-1)
            for index, image in enumerate(patches):
                _, attention = _attend(tile, image, padding, t1, None if patch_mask is None else patch_mask[index])
                context = torch.matmul(attention, image)
                norm = torch.linalg.vector_norm(context, dim=-1)
                norms[index, captions, :length] = norm
                floor = (norm * lengths).clamp_(min=_SMALLEST_NORM)
                cosines[index, captions, :length] = context.mul_(tile).sum(dim=-1).div_(floor)
        cosines.masked_fill_(~word_mask, 0.0)
        ctx.save_for_backward(patches, words, t1, word_mask, patch_mask, cosines, norms)
        return cosines

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        patches, words, t1, word_mask, patch_mask, cosines, norms = ctx.saved_tensors
        grad_patches, grad_words, grad_t1 = torch.zeros_like(patches), torch.zeros_like(words), torch.zeros_like(t1)
        upstream = grads[0].masked_fill(~word_mask, 0.0)
        for captions, length in _tiles(word_mask, patches.shape[1]):
            tile, padding = _tile(words, word_mask, captions, length)
            lengths = torch.linalg.vector_norm(tile, dim=-1, keepdim=True).clamp_(min=_SMALLEST_NORM)
            unit, scaled = tile / lengths, (tile * t1).flatten(0, 1)
            grad_tile = torch.zeros_like(tile)
            for index, image in enumerate(patches):
                spread, attention = _attend(tile, image, padding, t1, None if patch_mask is None else patch_mask[index])
                norm = norms[index, captions, :length].unsqueeze(-1).clamp_(min=_SMALLEST_NORM)
                cosine = cosines[index, captions, :length].unsqueeze(-1)
                gradient = upstream[index, captions, :length].unsqueeze(-1)
                direction = torch.matmul(attention, image).div_(norm)
                # Of the cosine by the weighted patch, orthogonal to it: hence no row sum in the softmax's backward.
                pull = torch.addcmul(unit, cosine, direction, value=-1.0).mul_(gradient / norm)
                grad_tile.add_(direction.addcmul_(cosine, unit, value=-1.0).mul_(gradient / lengths))
                slope = torch.matmul(pull, image.T).mul_(attention).mul_(spread)
                # Through the softmax over the words of a caption; both sums are of the same products.
                through = slope.sum(dim=1, keepdim=True)
                grad_t1 += through.sum()
                slope.addcmul_(spread, through, value=-1.0)
                grad_tile.flatten(0, 1).addmm_(slope.flatten(0, 1), image * t1)
                grad_patches[index].addmm_(attention.flatten(0, 1).T, pull.flatten(0, 1))
                grad_patches[index].addmm_(slope.flatten(0, 1).T, scaled)
            grad_words[captions, :length] += grad_tile
        return grad_patches, grad_words, grad_t1, None, None


def _tile(words: Tensor, mask: Tensor, captions: Tensor, length: int) -> tuple[Tensor, Tensor | None]:
    """The captions' words up to ``length``, and where they are padding (t, L, 1); None where none is."""
    kept = mask[captions, :length]
    return words[captions, :length], None if bool(kept.all()) else ~kept.unsqueeze(-1)
