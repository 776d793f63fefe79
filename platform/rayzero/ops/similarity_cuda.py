"""VL-CABS on a GPU in bfloat16: batched GEMMs over a few images at a time, the element-wise steps fused into them.

The same equations as ``similarity_tiles``. Products and sums are float32; the attention weights, and the rows that
later GEMMs multiply, are rounded to bfloat16, whose exponent's range is that of float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayzero.ops import similarity_kernels as kernels
from rayzero.ops.similarity_tiles import Attention, Gradients

# Scores of one tile: enough blocks for every multiprocessor, few enough to stay partly in the L2 cache.
_TILE_ELEMENTS = 1 << 24
# Rows of weights start at multiples of 16 bytes, which tensor cores read fastest.
_ALIGNED = 8


def forward(problem: Attention) -> tuple[Tensor, Tensor]:
    """Scores l and norms r, both (B, T) float32."""
    images, texts = problem.tokens.shape[0], problem.text.shape[0]
    scores, norms = (problem.text.new_empty((images, texts), dtype=torch.float32) for _ in range(2))
    tiles, blocks = _tiles(problem)
    for tile in tiles:
        tokens = problem.tokens[tile]
        for rows in blocks:
            query = problem.text[rows]
            weights = _columns(tokens, query.shape[0])
            kernels.exponentials(query, tokens, _bias(problem, tile), problem.temperature, weights)
            score, norm = (norms.new_empty((tokens.shape[0], query.shape[0])) for _ in range(2))
            kernels.cosines(_bmm(weights, tokens), query, score, norm)
            scores[tile, rows], norms[tile, rows] = score, norm
    return scores, norms


def backward(problem: Attention, cosines: Tensor, norms: Tensor, upstream: Tensor) -> Gradients:
    """Gradients for ``upstream`` (B, T), from l and r alone."""
    text, tau = problem.text, problem.temperature
    grad_text, through_scores = (torch.zeros_like(text, dtype=torch.float32) for _ in range(2))
    grad_tokens = torch.empty_like(problem.tokens)
    grad_bias = None if problem.bias is None else torch.zeros_like(problem.bias)
    tiles, blocks = _tiles(problem)
    for tile in tiles:
        tokens = problem.tokens[tile]
        partial: Tensor | None = None
        for rows in blocks:
            query, count = text[rows], text[rows].shape[0]
            # Weights and slopes one above the other, pulls and texts likewise: the tokens' gradient is one GEMM.
            stacked = _columns(tokens, 2 * count)
            weights, slope = stacked[:, :count], stacked[:, count:]
            factors = query.new_empty((tokens.shape[0], 2 * count, query.shape[1]))
            factors[:, count:] = query
            kernels.exponentials(query, tokens, _bias(problem, tile), tau, weights)
            context = _bmm(weights, tokens)
            score, norm, grad = (part[tile, rows].contiguous() for part in (cosines, norms, upstream))
            kernels.pulls(context, query, score, norm, grad, factors[:, :count])
            grad_text[rows] += context.sum(dim=0)
            kernels.slopes(factors[:, :count], tokens, weights, tau, slope)
            through_scores[rows] += _bmm(slope, tokens).sum(dim=0)
            if grad_bias is not None:
                grad_bias[tile] += slope.sum(dim=1, dtype=torch.float32) * tau
            if len(blocks) == 1:
                torch.bmm(stacked.transpose(1, 2), factors, out=grad_tokens[tile])
            else:
                part = _bmm(stacked.transpose(1, 2), factors)
                partial = part if partial is None else partial.add_(part)
        if partial is not None:
            grad_tokens[tile] = partial
    temperature = -(through_scores * text).sum() / tau
    return Gradients((grad_text + through_scores).to(text.dtype), grad_tokens, grad_bias, temperature)


def _tiles(problem: Attention) -> tuple[list[slice], list[slice]]:
    """Slices of images, and of texts: several of these only where one image alone exceeds a tile."""
    texts, (images, tokens, _) = problem.text.shape[0], problem.tokens.shape
    some = max(1, min(images, _TILE_ELEMENTS // (texts * tokens)))
    rows = max(1, min(texts, _TILE_ELEMENTS // tokens))
    return (
        [slice(start, min(start + some, images)) for start in range(0, images, some)],
        [slice(start, min(start + rows, texts)) for start in range(0, texts, rows)],
    )


def _columns(tokens: Tensor, rows: int) -> Tensor:
    """Uninitialised (b, rows, N) whose rows are aligned."""
    images, count, _ = tokens.shape
    return tokens.new_empty((images, rows, -(-count // _ALIGNED) * _ALIGNED))[..., :count]


def _bias(problem: Attention, tile: slice) -> Tensor | None:
    return None if problem.bias is None else problem.bias[tile]


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    """The batched product in float32: ``out_dtype`` exists on CUDA only, and the kernels' tests run without."""
    return torch.bmm(left, right, out_dtype=torch.float32) if left.is_cuda else torch.bmm(left.float(), right.float())
