"""Contrastive losses in log space, over a batch that may be sharded by image over processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from rayzero.ops.collectives import gather_rows, shared_value, sum_over_processes


def multi_positive_nce(
    logits: Tensor,
    positives: Tensor,
    *,
    balanced: bool = False,
    texts_on_rows: bool = False,
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
        group: processes that share the images by rows; every one holds the same T texts in the same order.

    Returns:
        The weighted mean over all positive pairs of the group of (text direction + image direction) / 2.
        Gradients follow the convention of ``rayzero.ops.collectives``.

    Raises:
        ValueError: shapes differ, ``positives`` is not boolean, or the group has no positive pair.
    """
    if logits.shape != positives.shape or logits.ndim != 2 or positives.dtype != torch.bool:
        raise ValueError(
            f"logits {tuple(logits.shape)} and positives {tuple(positives.shape)} ({positives.dtype}) "
            "must both be (B, T), positives boolean"
        )
    if texts_on_rows:
        images_of_text = positives.sum(dim=1, keepdim=True)
        pairs = sum_over_processes(images_of_text.sum(), group)
    else:
        images_of_text = sum_over_processes(positives.sum(dim=0), group)
        pairs = images_of_text.sum()
    if not bool(pairs):
        raise ValueError("no image has a sentence of its own in this batch: nothing to align")
    # Half of the dtype's range instead of -inf: a row without negatives then has loss 0 and gradient 0, not NaN.
    floor = torch.finfo(logits.dtype).min / 2
    negatives = logits.masked_fill(positives, floor)
    image_side = negatives.logsumexp(dim=1, keepdim=True)
    text_side = gather_rows(negatives.logsumexp(dim=0, keepdim=True), group).logsumexp(dim=0, keepdim=True)
    # log(exp p + exp s) - p = softplus(s - p)
    terms = F.softplus(image_side - logits) + F.softplus(text_side - logits)
    if balanced:
        texts = images_of_text.count_nonzero()
        terms, total = terms / images_of_text.clamp(min=1), sum_over_processes(texts, group) if texts_on_rows else texts
    else:
        total = pairs
    share = terms.masked_fill(~positives, 0.0).sum() / (2 * total)
    return shared_value(share, group)
