"""Symmetric cross-entropy between images and texts, over a batch that may be sharded by image over processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rayzero.ops.collectives import gather_rows, shared_value, sum_over_processes


def matching_loss(logits: Tensor, positives: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """(CE(Z, y) + CE(Z^T, y)) / 2 with targets spread evenly over the positives (ALTA spec, section 4).

    One text per image gives the plain loss. A text that several studies say is a target of each of them, where the
    plain loss would push it away from all but one.

    Args:
        logits: (B, T) of this process's images against the T distinct texts of the group.
        positives: (B, T) boolean.
        group: processes that share the images by rows; every one holds the same T texts in the same order.

    Returns:
        The mean over images plus the mean over texts, halved. Gradients follow ``rayzero.ops.collectives``.

    Raises:
        ValueError: shapes differ, ``positives`` is not boolean, or an image or a text has no partner.
    """
    if logits.shape != positives.shape or logits.ndim != 2 or positives.dtype != torch.bool:
        raise ValueError(
            f"logits {tuple(logits.shape)} and positives {tuple(positives.shape)} ({positives.dtype}) "
            "must both be (B, T), positives boolean"
        )
    counts = torch.cat([positives.sum(dim=0), positives.new_tensor([len(positives)], dtype=torch.int64)])
    *_, images = totals = sum_over_processes(counts, group)
    images_of_text, texts_of_image = totals[:-1], positives.sum(dim=1, keepdim=True)
    if not len(images_of_text) or not bool(images_of_text.all()) or not bool(texts_of_image.all()):
        raise ValueError("nothing to align: every image needs a text and every text an image in the batch")
    of_image = logits.logsumexp(dim=1, keepdim=True)
    of_text = gather_rows(logits.logsumexp(dim=0, keepdim=True), group).logsumexp(dim=0, keepdim=True)
    terms = (of_image - logits) / (texts_of_image * images) + (of_text - logits) / (
        images_of_text * len(images_of_text)
    )
    return shared_value(terms.masked_fill(~positives, 0.0).sum() / 2, group)
