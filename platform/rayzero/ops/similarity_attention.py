"""Vision-language cross-attention by similarity (VL-CABS), exact, with 2 B T scalars saved for the backward pass.

A text q attends over the unit tokens u_k of an image with weights softmax_k(<q, u_k> / tau); its score is the
cosine of q and the weighted sum of the tokens (RadZero spec, section 4). How it is computed without softmax
denominator, row maximum or any saved (B, T, N) or (B, T, D) tensor: ``similarity_tiles``; on CUDA, for bfloat16, with
the exponentials fused into the GEMMs: ``similarity_cuda``.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rayzero.ops import similarity_tiles
from rayzero.ops.precision import as_given
from rayzero.ops.similarity_tiles import Attention, Gradients


def vl_cabs(
    text: Tensor,
    tokens: Tensor,
    temperature: Tensor | float,
    *,
    token_mask: Tensor | None = None,
    value_scale: Tensor | None = None,
    similarity: Literal["cosine", "dot"] = "cosine",
) -> Tensor:
    """Cosine (B, T) between each text and its attention-weighted image.

    Args:
        text: (T, D) rows, of unit length for ``similarity="cosine"``.
        tokens: (B, N, D) rows, of unit length for ``similarity="cosine"``. N counts the tokens of a film or a volume;
            images with fewer are padded and masked, and cost what their real tokens cost (on CPU).
        temperature: positive, finite; a float or a tensor of one element (differentiable). It divides <q, u_k>.
        token_mask: (B, N) boolean, false where a token is padding. Every image keeps at least one token.
        value_scale: (B, N) positive lengths: the weighted sum is over value_scale_k * u_k. With the lengths of the
            tokens before they were made unit, these are the paper's values; without, those of its code.
        similarity: "dot" takes rows of any length, and a temperature of sqrt(D), as the paper's ablation (a).

    Returns:
        (B, T) in the dtype of ``text``; float32 for half-precision rows, whose products and sums are float32 too.
        Measured against the plain formula in float64 on the same rows (temperature 0.07, 1,370 tokens of width 768):
        2e-7 for float32, and for half precision on a CPU. The fused bfloat16 kernels also round the attention
        weights, which moves a score by 1e-4; rounding unit rows to bfloat16 beforehand moves it by 3e-4.
        A weighted sum of length zero scores 0, with no gradient.

    Raises:
        ValueError: shapes that do not fit or hold nothing, a mask that empties an image, or a temperature that is
            not positive.
    """
    if text.ndim != 2 or tokens.ndim != 3 or text.shape[1] != tokens.shape[2]:
        raise ValueError(f"text {tuple(text.shape)} and tokens {tuple(tokens.shape)} must be (T, D) and (B, N, D)")
    if not text.numel() or not tokens.numel():
        raise ValueError(
            f"text {tuple(text.shape)} and tokens {tuple(tokens.shape)}: give at least one text, image and token"
        )
    if text.dtype != tokens.dtype or text.device != tokens.device:
        raise ValueError(
            f"text ({text.dtype}, {text.device}) and tokens ({tokens.dtype}, {tokens.device}) "
            "must share dtype and device"
        )
    wide = torch.float32 if text.dtype in (torch.bfloat16, torch.float16) else text.dtype
    tau = torch.as_tensor(temperature, dtype=wide, device=text.device)
    if tau.numel() != 1 or not 0.0 < float(tau.detach()) < math.inf:
        raise ValueError(f"temperature must be one positive number, got {temperature!r}")
    bias = _bias(tokens, token_mask, value_scale, wide)
    with as_given(text):
        result: Tensor = _VLCabs.apply(text.contiguous(), tokens.contiguous(), tau, bias, similarity == "cosine")
    if similarity == "dot":
        result = result / torch.linalg.vector_norm(text, dim=-1, dtype=wide)
    return result


def vl_cabs_reference(
    text: Tensor,
    tokens: Tensor,
    temperature: Tensor | float,
    *,
    token_mask: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """The formula as published, the oracle for ``vl_cabs``: softmax attention, weighted sum, cosine."""
    scores = torch.einsum("td,bnd->btn", text, tokens) / temperature
    if token_mask is not None:
        scores = scores.masked_fill(~token_mask.unsqueeze(1), -torch.inf)
    values = tokens if value_scale is None else tokens * value_scale.unsqueeze(-1)
    context = torch.einsum("btn,bnd->btd", scores.softmax(dim=-1), values)
    return torch.einsum("td,btd->bt", text, F.normalize(context, dim=-1))


def forward_flops(text: torch.Size, tokens: torch.Size, *_: object, out_shape: object = None) -> int:
    """Operations of the plain formula's products, for a FLOP counter: it cannot see into Triton kernels."""
    texts, (images, count, width) = text[0], tokens
    return images * texts * (4 * count * width + 2 * width)


def backward_flops(text: torch.Size, tokens: torch.Size, *_: object, out_shape: object = None) -> int:
    """The same of the plain formula's gradients: each product has two. What is computed again counts nothing."""
    return 2 * forward_flops(text, tokens)


def _forward(
    text: Tensor, tokens: Tensor, bias: Tensor | None, temperature: float, row_max: bool
) -> tuple[Tensor, Tensor]:
    problem = Attention(text, tokens, bias, temperature, row_max)
    cosines, norms = _engine(problem).forward(problem)
    return cosines, norms


def _backward(
    text: Tensor,
    tokens: Tensor,
    bias: Tensor | None,
    temperature: float,
    row_max: bool,
    cosines: Tensor,
    norms: Tensor,
    upstream: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = Attention(text, tokens, bias, temperature, row_max)
    found: Gradients = _engine(problem).backward(problem, cosines, norms, upstream)
    # An operator returns tensors and no None: nothing in place of the gradient of no bias.
    return found.text, found.tokens, text.new_empty(0) if found.bias is None else found.bias, found.temperature


# Operators that torch knows by name: a FLOP counter takes each for one, whatever computes it. Defined by their schemas,
# as torch.library.custom_op would import torch's compiler, and with it Triton, at the first call.
_LIBRARY = torch.library.Library("rayzero", "DEF")
_PROBLEM = "Tensor text, Tensor tokens, Tensor? bias, float temperature, bool row_max"
_LIBRARY.define(f"vl_cabs({_PROBLEM}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"vl_cabs_backward({_PROBLEM}, Tensor cosines, Tensor norms, Tensor upstream) -> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("vl_cabs", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("vl_cabs_backward", _backward, "CompositeExplicitAutograd")


class _VLCabs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text: Tensor, tokens: Tensor, tau: Tensor, bias: Tensor | None, bounded: bool) -> Tensor:
        ctx.bounded = bounded
        cosines: Tensor
        cosines, norms = torch.ops.rayzero.vl_cabs(*_problem(text, tokens, tau, bias, bounded))
        ctx.save_for_backward(text, tokens, tau, bias, cosines, norms)
        return cosines

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        text, tokens, tau, bias, cosines, norms = ctx.saved_tensors
        problem = _problem(text, tokens, tau, bias, ctx.bounded)
        of_text, of_tokens, of_bias, of_tau = torch.ops.rayzero.vl_cabs_backward(*problem, cosines, norms, grads[0])
        return of_text, of_tokens, of_tau.reshape(tau.shape), None if bias is None else of_bias, None


def _engine(problem: Attention) -> ModuleType:
    """What computes the problem: the fused kernels where they apply, which no CPU imports."""
    if problem.text.is_cuda and problem.text.dtype == torch.bfloat16 and not problem.row_max:
        from rayzero.ops import similarity_cuda

        return similarity_cuda
    return similarity_tiles


def _bias(tokens: Tensor, mask: Tensor | None, scale: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What scales values and hides padding, as a term (B, N) of the scores: log scale, and -inf on padding."""
    shape = tokens.shape[:2]
    if mask is not None and (mask.shape != shape or mask.dtype != torch.bool or not bool(mask.any(dim=1).all())):
        raise ValueError(f"token_mask must be boolean (B, N) = {tuple(shape)} with a true entry in every row")
    if scale is None:
        return None if mask is None else tokens.new_zeros(shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    if mask is not None and scale.shape == shape:
        scale = scale.masked_fill(~mask, 1.0)
    if scale.shape != shape or not bool((scale > 0).all()):
        raise ValueError(f"value_scale must be (B, N) = {tuple(shape)} with positive entries")
    bias = scale.to(dtype).log()
    return bias if mask is None else bias.masked_fill(~mask, -torch.inf)


def _problem(text: Tensor, tokens: Tensor, tau: Tensor, bias: Tensor | None, bounded: bool) -> Attention:
    temperature = float(tau)
    # The squared norm of a context lies within exp(-2 / tau) and N^2 exp(2 / tau), for unit rows: true in float32 at
    # tau >= 0.0301. A quarter of the exponent's range is left for the number of tokens and for the lengths of values.
    safe = bounded and 2 / temperature <= 0.75 * math.log(torch.finfo(tau.dtype).max)
    return Attention(text, tokens, bias, temperature, row_max=not safe)
