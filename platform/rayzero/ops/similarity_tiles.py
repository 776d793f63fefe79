"""VL-CABS tile by tile in plain torch: scores of one image and a block of texts, exponentials, two GEMMs.

With w_k = exp(<q, u_k> / tau + b_k), c = sum_k w_k u_k and r = |c|, the score is l = <q, c> / r: a cosine does not
change when c is scaled, so the softmax denominator cancels (RadZero spec, section 9, identity 1). A row maximum is
subtracted only where the exponentials could leave the dtype's range (identity 2). With a = dl / r the gradient of c
is a (q - l c / r); it is orthogonal to c, so the scores' gradient needs no row sum (identity 3).

When an image has few tokens, r^2 = w' (U U') w and no (T, D) context is formed at all (identity 4). There is no
tiling over tokens: the 64 rows of a tile over all N tokens are 64 / D of the size of the tokens themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rayzero.ops.precision import wide

# Scores of one tile: two such buffers stay in the last-level cache of a common CPU.
_TILE_ELEMENTS = 1 << 20
_MIN_ROWS = 64


class Attention(NamedTuple):
    """One problem: ``text`` (T, D), ``tokens`` (B, N, D), ``bias`` (B, N) added to the scores, -inf on padding."""

    text: Tensor
    tokens: Tensor
    bias: Tensor | None
    temperature: float
    row_max: bool

    @property
    def gram(self) -> bool:
        """Whether the Gram form needs fewer operations: 4 T D + 3 N (T + D) per token instead of 8 T D."""
        texts, (_, tokens, width) = self.text.shape[0], self.tokens.shape
        return 3 * tokens * (texts + width) < 4 * texts * width


class Gradients(NamedTuple):
    """Of ``text``, ``tokens``, ``bias`` (None without one) and the temperature (a scalar)."""

    text: Tensor
    tokens: Tensor
    bias: Tensor | None
    temperature: Tensor


class _Image(NamedTuple):
    """The real tokens (n, D) of one image, their bias (n,), and where they are among all N; None: all of them."""

    tokens: Tensor
    bias: Tensor | None
    kept: Tensor | None


def forward(problem: Attention) -> tuple[Tensor, Tensor]:
    """Scores l and norms r, both (B, T), in the compute dtype."""
    tiles = _Tiles(problem)
    text = tiles.text
    cosines, norms = (text.new_empty((problem.tokens.shape[0], text.shape[0])) for _ in range(2))
    for b, image in _images(problem):
        gram = image.tokens @ image.tokens.T if problem.gram else None
        for rows in tiles.blocks:
            if gram is None:
                context = tiles.context(rows, image, tiles.weights(rows, image))
                norm = torch.linalg.vector_norm(context, dim=-1)
                numerator = torch.linalg.vecdot(text[rows], context)
            else:
                scores, weights = tiles.scores_and_weights(rows, image)
                norm = torch.linalg.vecdot(weights @ gram, weights).clamp_(min=0.0).sqrt_()
                numerator = torch.linalg.vecdot(weights, scores).mul_(problem.temperature)
            norms[b, rows] = norm
            cosines[b, rows] = numerator * _inverse(norm)
    return cosines, norms


def backward(problem: Attention, cosines: Tensor, norms: Tensor, upstream: Tensor) -> Gradients:
    """Gradients for ``upstream`` (B, T), from l and r alone."""
    tiles = _Tiles(problem)
    grads = Gradients(
        torch.zeros_like(tiles.text),
        torch.zeros_like(problem.tokens),
        None if problem.bias is None else torch.zeros_like(problem.bias),
        tiles.text.new_zeros(()),
    )
    step = _gram_step if problem.gram else _direct_step
    for b, image in _images(problem):
        inverse = _inverse(norms[b])
        scale = (inverse * upstream[b]).unsqueeze(1)
        shrink = scale * (inverse * cosines[b]).unsqueeze(1)
        whole = image.kept is None and image.tokens.dtype == grads.tokens.dtype
        grad_tokens = grads.tokens[b] if whole else torch.zeros_like(image.tokens)
        grad_bias = step(tiles, image, scale, shrink, grads, grad_tokens)
        if not whole:
            grads.tokens[b, slice(None) if image.kept is None else image.kept] = grad_tokens.to(grads.tokens.dtype)
        if grads.bias is not None:
            grads.bias[b, slice(None) if image.kept is None else image.kept] = grad_bias * problem.temperature
    return grads._replace(text=grads.text.to(problem.text.dtype))


def _direct_step(
    tiles: _Tiles, image: _Image, scale: Tensor, shrink: Tensor, grads: Gradients, grad_tokens: Tensor
) -> Tensor:
    """One image, with a = dl / r (T, 1) as ``scale`` and a l / r as ``shrink``.

    Adds to the gradients of the text, the temperature and the image's tokens; returns that of its bias over tau.
    """
    units, tau = image.tokens, tiles.problem.temperature
    grad_bias = units.new_zeros(units.shape[0])
    for rows in tiles.blocks:
        query, a = tiles.text[rows], scale[rows]
        weights = tiles.weights(rows, image)
        context = tiles.context(rows, image, weights)
        grads.text[rows].addcmul_(context, a)
        pull = torch.mul(query, a, out=tiles.buffer("pull", *query.shape)).addcmul_(context, shrink[rows], value=-1)
        slope = torch.mm(pull, units.T, out=tiles.buffer("slope", *weights.shape)).mul_(weights).mul_(1 / tau)
        # sum_k ds_k cos_k = <q, sum_k ds_k u_k>: the temperature's gradient needs no pass over the scores.
        through_scores = torch.mm(slope, units, out=context)
        grads.text[rows].add_(through_scores)
        grads.temperature.sub_(torch.dot(query.flatten(), through_scores.flatten()), alpha=1 / tau)
        grad_tokens.addmm_(weights.T, pull).addmm_(slope.T, query)
        if image.bias is not None:
            grad_bias += slope.sum(dim=0)
    return grad_bias


def _gram_step(
    tiles: _Tiles, image: _Image, scale: Tensor, shrink: Tensor, grads: Gradients, grad_tokens: Tensor
) -> Tensor:
    """As ``_direct_step``, with <c_i, u_k> = (K w_i)_k and sum_i w_ik c_i = sum_m (sum_i w_ik w_im) u_m, K = U U'."""
    units, tau = image.tokens, tiles.problem.temperature
    grad_bias = units.new_zeros(units.shape[0])
    gram = units @ units.T
    pairs = torch.zeros_like(gram)
    for rows in tiles.blocks:
        query, a = tiles.text[rows], scale[rows]
        scores, weights = tiles.scores_and_weights(rows, image)
        slope = torch.mm(weights, gram, out=tiles.buffer("slope", *scores.shape)).mul_(shrink[rows] / -tau)
        slope.addcmul_(scores, a).mul_(weights)
        grads.temperature.sub_(torch.dot(slope.flatten(), scores.flatten()))
        if image.bias is not None:
            grad_bias += slope.sum(dim=0)
        pairs.addmm_(weights.T, torch.mul(weights, shrink[rows], out=scores))
        both = slope.addcmul_(weights, a)
        grads.text[rows].addmm_(both, units)
        grad_tokens.addmm_(both.T, query)
    grad_tokens.addmm_(pairs, units, alpha=-1)
    return grad_bias


class _Tiles:
    """The blocks of texts of a problem, and the memory of one tile.

    The memory is used again for every tile: fresh pages from the system cost as much as the arithmetic on them.
    """

    def __init__(self, problem: Attention) -> None:
        self.problem, self.text = problem, wide(problem.text)
        texts = self.text.shape[0]
        step = max(_MIN_ROWS, _TILE_ELEMENTS // problem.tokens.shape[1])
        self.blocks = [slice(start, min(start + step, texts)) for start in range(0, texts, step)]
        self._memory: dict[str, Tensor] = {}

    def buffer(self, name: str, rows: int, columns: int) -> Tensor:
        """Uninitialised (rows, columns), the same memory at every call with this name."""
        memory = self._memory.get(name)
        if memory is None or memory.numel() < rows * columns:
            memory = self._memory[name] = self.text.new_empty(rows * columns)
        return memory[: rows * columns].view(rows, columns)

    def scores(self, rows: slice, image: _Image) -> Tensor:
        """<q, u> / tau, (t, n)."""
        query = self.text[rows]
        out = self.buffer("scores", query.shape[0], image.tokens.shape[0])
        return torch.addmm(out, query, image.tokens.T, beta=0.0, alpha=1 / self.problem.temperature, out=out)

    def weights(self, rows: slice, image: _Image) -> Tensor:
        """exp(scores + bias), (t, n), in the memory of the scores."""
        return self._exponentials(self.scores(rows, image), image)

    def scores_and_weights(self, rows: slice, image: _Image) -> tuple[Tensor, Tensor]:
        """Both, each (t, n), side by side."""
        scores = self.scores(rows, image)
        return scores, self._exponentials(self.buffer("weights", *scores.shape).copy_(scores), image)

    def context(self, rows: slice, image: _Image, weights: Tensor) -> Tensor:
        """sum_k w_k u_k, (t, D)."""
        return torch.mm(weights, image.tokens, out=self.buffer("context", *self.text[rows].shape))

    def _exponentials(self, scores: Tensor, image: _Image) -> Tensor:
        if image.bias is not None:
            scores += image.bias
        if self.problem.row_max:
            scores -= scores.amax(dim=-1, keepdim=True)
        return scores.exp_()


def _images(problem: Attention) -> Iterator[tuple[int, _Image]]:
    for b, tokens in enumerate(problem.tokens):
        bias = None if problem.bias is None else problem.bias[b]
        kept = None if bias is None else (bias > -torch.inf).nonzero().squeeze(1)
        if bias is None or kept is None or kept.numel() == bias.numel():
            yield b, _Image(wide(tokens), bias, None)
        else:
            yield b, _Image(wide(tokens[kept]), bias[kept], kept)


def _inverse(norm: Tensor) -> Tensor:
    """1 / r, and 0 for a context without direction: its score is 0, with no gradient."""
    return torch.where(norm > torch.finfo(norm.dtype).tiny, norm.reciprocal(), 0.0)
