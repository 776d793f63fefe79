"""Contrastive losses in log space, over a batch that may be sharded by image over processes.

All take the logits (B, T) of this process's images against all T texts of the group, in the same order on every
process, and a boolean mask of positives of that shape: a sentence that several reports say is positive for all of
them, and sibling views of a study share theirs. What comes back follows the convention of
``rayzero.ops.collectives``. No loss is ever NaN: bad logits and a batch without positives are refused, on all
processes of the group alike.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from rayzero.ops.collectives import gather_rows, shared_value, sum_over_processes

Directions = Literal["mean", "sum"]
_FACTOR: dict[Directions, float] = {"mean": 0.5, "sum": 1.0}


class NonFiniteLogitsError(ValueError):
    """Logits of some process of the group are infinite or not a number; every process of it raises this."""


def multi_positive_nce(
    logits: Tensor,
    positives: Tensor,
    *,
    balanced: bool = False,
    texts_on_rows: bool = False,
    directions: Directions = "mean",
    group: ProcessGroup | None = None,
) -> Tensor:
    """Multi-positive InfoNCE, both directions (RadZero spec, section 5).

    Each positive pair competes with the negatives of its image and with the negatives of its text; the other
    positives of either are left out. Where each text has one image, the text direction is plain InfoNCE.

    Args:
        logits: (B, T) of this process's images against all T texts of the group.
        positives: (B, T) boolean.
        balanced: weigh a pair by 1 / (images that its text is positive for), so that each text counts once. As
            published, each pair counts once, and a sentence that most reports say ("There is no pneumothorax")
            outweighs all rare findings together.
        texts_on_rows: ``logits`` and ``positives`` are (T, B), this process's texts against all images of the group.
        directions: the mean of the text and the image direction (RadZero's code) or their sum (its paper).
        group: processes that share the images by rows; every one holds the same T texts in the same order.

    Returns:
        The weighted mean over all positive pairs of the group of both directions' terms.

    Raises:
        ValueError: shapes differ, ``positives`` is not boolean, the group has no positive pair, or a logit is not
            finite.
    """
    logits, counts = _checked(logits, positives, group)
    # Half of the dtype's range instead of -inf: a row without negatives then has loss 0 and gradient 0, not NaN.
    floor = torch.finfo(logits.dtype).min / 2
    negatives = logits.masked_fill(positives, floor)
    image_side = negatives.logsumexp(dim=1, keepdim=True)
    text_side = _over_images(negatives, group)
    # log(exp p + exp s) - p = softplus(s - p)
    terms = F.softplus(image_side - logits) + F.softplus(text_side - logits)
    total = counts.sum()
    if balanced:
        images_of_text = positives.sum(dim=1, keepdim=True) if texts_on_rows else counts
        total = images_of_text.count_nonzero()
        total = sum_over_processes(total, group) if texts_on_rows else total
        terms = terms / images_of_text.clamp(min=1)
    share = _FACTOR[directions] * terms.masked_fill(~positives, 0.0).sum() / total
    return shared_value(share, group)


def info_nce(
    logits: Tensor, positives: Tensor, *, directions: Directions = "mean", group: ProcessGroup | None = None
) -> Tensor:
    """InfoNCE, both directions: cross-entropy against the uniform distribution over a row's positives.

    With one positive per row this is the cross-entropy of CLIP, ALTA (mean of both directions; ALTA spec,
    section 4) and BrgSA (their sum; BrgSA spec, section 5). With several, each competes with all pairs of its row,
    the other positives included, and a row's terms are averaged (the outer form of arXiv 2004.11362, equation 2).

    Args:
        logits: (B, T) of this process's images against all T texts of the group.
        positives: (B, T) boolean.
        directions: the mean of both directions or their sum.
        group: processes that share the images by rows; every one holds the same T texts in the same order.

    Returns:
        Image direction: the mean over the group's images that have a positive; text direction likewise over texts.

    Raises:
        ValueError: as ``multi_positive_nce``.
    """
    logits, images_of_text = _checked(logits, positives, group)
    texts_of_image = positives.sum(dim=1, keepdim=True)
    images = sum_over_processes(texts_of_image.count_nonzero(), group)
    of_image = (logits.logsumexp(dim=1, keepdim=True) - logits) / (texts_of_image.clamp(min=1) * images)
    of_text = (_over_images(logits, group) - logits) / (images_of_text.clamp(min=1) * images_of_text.count_nonzero())
    share = _FACTOR[directions] * (of_image + of_text).masked_fill(~positives, 0.0).sum()
    return shared_value(share, group)


def sigmoid_nce(logits: Tensor, positives: Tensor, *, group: ProcessGroup | None = None) -> Tensor:
    """The pairwise sigmoid loss (SigLIP, arXiv 2303.15343, section 3.2): every pair is a yes or no of its own.

    Args:
        logits: (B, T), temperature and bias already in them.
        positives: (B, T) boolean.
        group: processes that share the images by rows; every one holds the same T texts in the same order.

    Returns:
        The sum over all pairs of the group of -log sigmoid(+-logit), over the number of positive pairs: as
        published, where each image has one text and the sum is divided by the batch size.

    Raises:
        ValueError: as ``multi_positive_nce``.
    """
    logits, images_of_text = _checked(logits, positives, group)
    terms = F.softplus(torch.where(positives, -logits, logits))
    return shared_value(terms.sum() / images_of_text.sum(), group)


def _checked(logits: Tensor, positives: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """The logits in float32 at least, and how many of the group's images each text is positive for (T,)."""
    if logits.shape != positives.shape or logits.ndim != 2 or positives.dtype != torch.bool:
        raise ValueError(
            f"logits {tuple(logits.shape)} and positives {tuple(positives.shape)} ({positives.dtype}) "
            "must both be (B, T), positives boolean"
        )
    # One collective for both counts: every process then raises, or none.
    bad = logits.isfinite().logical_not().sum().reshape(1)
    counts = sum_over_processes(torch.cat([positives.sum(dim=0), bad]), group)
    if int(counts[-1]):
        raise NonFiniteLogitsError(f"{int(counts[-1])} logits are not finite: look for an overflow in the features")
    if not bool(counts[:-1].any()):
        raise ValueError("no image has a sentence of its own in this batch: nothing to align")
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits, counts[:-1]


def _over_images(logits: Tensor, group: ProcessGroup | None) -> Tensor:
    """logsumexp over all images of the group, (1, T)."""
    return gather_rows(logits.logsumexp(dim=0, keepdim=True), group).logsumexp(dim=0, keepdim=True)
