# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""Triton kernels of VL-CABS: a GEMM whose epilogue is the element-wise step, and two kernels over context rows.

The (T, N) scores never reach memory in float32: the accumulators of <q, u> become exp(<q, u> / tau + b), and those
of <pull, u> become w <pull, u> / tau, before they are stored in the rows' own dtype.

``TRITON_INTERPRET=1`` runs all of them on a CPU, which is how they are tested where there is no GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# 128 x 128 accumulators in float32 fill half of a multiprocessor's registers; 64 is one swizzled row of shared memory.
_BLOCK_ROWS, _BLOCK_TOKENS, _BLOCK_WIDTH, _GROUP = 128, 128, 64, 8
_WARPS, _STAGES = 8, 3


def exponentials(rows: Tensor, tokens: Tensor, bias: Tensor | None, temperature: float, out: Tensor) -> None:
    """``out`` (B, T, N) = exp(<rows, tokens> / temperature + bias).

    Args:
        rows: (T, D), the same for all images.
        tokens: (B, N, D).
        bias: (B, N) float32, -inf on padding.
        temperature: divides the products.
        out: (B, T, N), of any strides whose last is 1.
    """
    _gemm(rows.unsqueeze(0).expand(tokens.shape[0], -1, -1), tokens, bias, None, temperature, out)


def slopes(rows: Tensor, tokens: Tensor, weights: Tensor, temperature: float, out: Tensor) -> None:
    """``out`` (B, T, N) = weights * <rows, tokens> / temperature, for rows (B, T, D) and weights (B, T, N)."""
    _gemm(rows, tokens, None, weights, temperature, out)


def cosines(context: Tensor, text: Tensor, score: Tensor, norm: Tensor) -> None:
    """``norm`` = |c| and ``score`` = <q, c> / |c|, both (B, T), of contexts (B, T, D) float32 and text (T, D)."""
    images, texts, width = context.shape
    _cosines_kernel[(images * texts,)](context, text, score, norm, texts, width, BLOCK=triton.next_power_of_2(width))


def pulls(context: Tensor, text: Tensor, score: Tensor, norm: Tensor, upstream: Tensor, out: Tensor) -> None:
    """``out`` (B, T, D) = a (q - l c / r), and ``context`` becomes a c, with a = upstream / r.

    Args:
        context: (B, T, D) float32, contiguous.
        text: (T, D).
        score: (B, T) l.
        norm: (B, T) r.
        upstream: (B, T) gradient of l.
        out: (B, T, D), of any strides whose last is 1.
    """
    images, texts, width = context.shape
    _pulls_kernel[(images * texts,)](
        context, text, score, norm, upstream, out, texts, width, *out.stride()[:2], BLOCK=triton.next_power_of_2(width)
    )


def _gemm(
    rows: Tensor, tokens: Tensor, bias: Tensor | None, weights: Tensor | None, temperature: float, out: Tensor
) -> None:
    (images, texts, width), count = rows.shape, tokens.shape[1]
    grid = (triton.cdiv(texts, _BLOCK_ROWS) * triton.cdiv(count, _BLOCK_TOKENS), images)
    _gemm_kernel[grid](
        rows,
        tokens,
        out if bias is None else bias,
        out if weights is None else weights,
        out,
        1 / temperature,
        texts,
        count,
        width,
        *rows.stride()[:2],
        *tokens.stride()[:2],
        0 if bias is None else bias.stride(0),
        *((0, 0) if weights is None else weights.stride()[:2]),
        *out.stride()[:2],
        HAS_BIAS=bias is not None,
        TIMES_WEIGHTS=weights is not None,
        # The interpreter cannot multiply bfloat16; such products are exact in float32 either way.
        WIDE=rows.dtype == torch.float32 or not rows.is_cuda,
        BLOCK_T=_BLOCK_ROWS,
        BLOCK_N=_BLOCK_TOKENS,
        BLOCK_D=_BLOCK_WIDTH,
        GROUP=_GROUP,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )


@triton.jit
def _gemm_kernel(
    rows, tokens, bias, weights, out, inverse_temperature, texts, count, width,
    rows_b, rows_t, tokens_b, tokens_n, bias_b, weights_b, weights_t, out_b, out_t,
    HAS_BIAS: tl.constexpr, TIMES_WEIGHTS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    # Programs walk GROUP blocks of texts before the next block of tokens, so that both stay in the L2 cache.
    blocks_t, blocks_n = tl.cdiv(texts, BLOCK_T), tl.cdiv(count, BLOCK_N)
    program, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = program // (GROUP * blocks_n) * GROUP
    size = min(blocks_t - first, GROUP)
    t = (first + program % (GROUP * blocks_n) % size) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = program % (GROUP * blocks_n) // size * BLOCK_N + tl.arange(0, BLOCK_N)
    real_t, real_n = t < texts, n < count
    row = rows + image * rows_b + t.to(tl.int64)[:, None] * rows_t
    token = tokens + image * tokens_b + n.to(tl.int64)[None, :] * tokens_n
    total = tl.zeros((BLOCK_T, BLOCK_N), dtype=tl.float32)
    for start in range(0, width, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        real_d = d < width
        a = tl.load(row + d[None, :], mask=real_t[:, None] & real_d[None, :], other=0.0)
        b = tl.load(token + d[:, None], mask=real_d[:, None] & real_n[None, :], other=0.0)
        if WIDE:
            total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
        else:
            total = tl.dot(a, b, total)
    total *= inverse_temperature
    real = real_t[:, None] & real_n[None, :]
    if TIMES_WEIGHTS:
        place = weights + image * weights_b + t.to(tl.int64)[:, None] * weights_t + n[None, :]
        total *= tl.load(place, mask=real, other=0.0).to(tl.float32)
    else:
        if HAS_BIAS:
            total += tl.load(bias + image * bias_b + n, mask=real_n, other=0.0)[None, :]
        total = tl.exp(total)
    target = out + image * out_b + t.to(tl.int64)[:, None] * out_t + n[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=real)


@triton.jit
def _inverse(length):
    # 0 for a context without direction: it scores 0, with no gradient.
    return tl.where(length > 1e-37, 1.0 / tl.maximum(length, 1e-37), 0.0)


@triton.jit
def _cosines_kernel(context, text, score, norm, texts, width, BLOCK: tl.constexpr):
    pair = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    c = tl.load(context + pair * width + d, mask=d < width, other=0.0)
    q = tl.load(text + pair % texts * width + d, mask=d < width, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(c * c))
    tl.store(norm + pair, length)
    tl.store(score + pair, tl.sum(q * c) * _inverse(length))


@triton.jit
def _pulls_kernel(
    context, text, score, norm, upstream, out, texts, width, out_b, out_t, BLOCK: tl.constexpr
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    c = tl.load(context + pair * width + d, mask=d < width, other=0.0)
    q = tl.load(text + pair % texts * width + d, mask=d < width, other=0.0).to(tl.float32)
    length = tl.load(norm + pair)
    inverse = _inverse(length)
    a = tl.load(upstream + pair) * inverse
    pull = a * (q - tl.load(score + pair) * inverse * c)
    place = out + pair // texts * out_b + pair % texts * out_t + d
    tl.store(place, pull.to(out.dtype.element_ty), mask=d < width)
    tl.store(context + pair * width + d, a * c, mask=d < width)
