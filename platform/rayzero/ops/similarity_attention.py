"""Vision-language cross-attention by similarity (VL-CABS), exact, without any (B, T, D) or saved (B, T, N) tensor.

A text q attends over the unit tokens u_k of an image with weights softmax_k(<q, u_k> / tau); its score is the
cosine of q and the weighted sum. A cosine does not change when the sum is scaled, so the softmax denominator
cancels and weights w_k = exp((cos_k - max cos) / tau) suffice (RadZero spec, section 9, identities 1 and 3):

    l = (sum_k w_k cos_k) / |sum_k w_k u_k|

The backward pass needs only l and the norm, 2 B T scalars; the score tile is recomputed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Elements of one (images, T, N) score tile: large enough for efficient GEMMs, small beside the inputs' gradients.
_TILE_ELEMENTS = 1 << 22


def vl_cabs(text: Tensor, tokens: Tensor, temperature: Tensor | float, *, token_mask: Tensor | None = None) -> Tensor:
    """Cosine (B, T) between each text and its attention-weighted image (RadZero spec, section 4, unit values).

    Args:
        text: (T, D) rows of unit length.
        tokens: (B, N, D) rows of unit length.
        temperature: positive scalar, a float or a tensor of one element (differentiable).
        token_mask: (B, N) boolean, false where a token is padding. Every image keeps at least one token.

    Raises:
        ValueError: shapes that do not fit.
    """
    if text.ndim != 2 or tokens.ndim != 3 or text.shape[1] != tokens.shape[2]:
        raise ValueError(f"text {tuple(text.shape)} and tokens {tuple(tokens.shape)} must be (T, D) and (B, N, D)")
    if token_mask is not None and (token_mask.shape != tokens.shape[:2] or not bool(token_mask.any(dim=1).all())):
        raise ValueError(f"token_mask must be (B, N) = {tuple(tokens.shape[:2])} with a true entry in every row")
    tau = torch.as_tensor(temperature, dtype=text.dtype, device=text.device)
    result: Tensor = _VLCabs.apply(text, tokens, tau, token_mask)
    return result


def vl_cabs_reference(text: Tensor, tokens: Tensor, temperature: Tensor | float) -> Tensor:
    """The formula as published, the oracle for ``vl_cabs``: softmax attention, weighted sum, cosine."""
    scores = torch.einsum("td,bnd->btn", text, tokens) / temperature
    context = torch.einsum("btn,bnd->btd", scores.softmax(dim=-1), tokens)
    return torch.einsum("td,btd->bt", text, torch.nn.functional.normalize(context, dim=-1))


def _tiles(images: int, texts: int, tokens: int) -> list[slice]:
    step = max(1, _TILE_ELEMENTS // max(1, texts * tokens))
    return [slice(start, min(start + step, images)) for start in range(0, images, step)]


def _weights(text: Tensor, tokens: Tensor, tau: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cosines and un-normalised attention weights (b, T, N) of one tile of images."""
    cosine = text @ tokens.transpose(1, 2)
    shifted = cosine if mask is None else cosine.masked_fill(~mask.unsqueeze(1), -torch.inf)
    weights = shifted.sub(shifted.amax(dim=-1, keepdim=True)).div_(tau).exp_()
    return cosine, weights


class _VLCabs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text: Tensor, tokens: Tensor, tau: Tensor, mask: Tensor | None) -> Tensor:
        images, count, _ = tokens.shape
        cosines, norms = (text.new_empty((images, text.shape[0])) for _ in range(2))
        for tile in _tiles(images, text.shape[0], count):
            cosine, weights = _weights(text, tokens[tile], tau, None if mask is None else mask[tile])
            norms[tile] = torch.linalg.vector_norm(weights @ tokens[tile], dim=-1)
            cosines[tile] = (weights.mul_(cosine)).sum(dim=-1) / norms[tile]
        ctx.save_for_backward(text, tokens, tau, mask, cosines, norms)
        return cosines

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        text, tokens, tau, mask, cosines, norms = ctx.saved_tensors
        grad_text, grad_tokens = torch.zeros_like(text), torch.empty_like(tokens)
        grad_tau = torch.zeros_like(tau)
        for tile in _tiles(tokens.shape[0], text.shape[0], tokens.shape[1]):
            unit = tokens[tile]
            cosine, weights = _weights(text, unit, tau, None if mask is None else mask[tile])
            upstream = grads[0][tile].unsqueeze(-1)
            norm = norms[tile].unsqueeze(-1)
            direction = (weights @ unit).div_(norm)
            # Orthogonal to the weighted sum, hence no row-sum term as in softmax attention.
            pull = (text - cosines[tile].unsqueeze(-1) * direction).mul_(upstream / norm)
            slope = (pull @ unit.transpose(1, 2)).mul_(weights).div_(tau)
            grad_text += (direction.mul_(upstream) + slope @ unit).sum(dim=0)
            # One GEMM for both terms of the token gradient.
            factors = torch.cat([weights, slope], dim=1).transpose(1, 2)
            grad_tokens[tile] = factors @ torch.cat([pull, text.expand_as(pull)], dim=1)
            grad_tau -= (slope.mul_(cosine).sum() / tau).reshape(tau.shape)
        return grad_text, grad_tokens, grad_tau, None
