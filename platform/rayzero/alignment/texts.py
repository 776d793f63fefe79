"""The texts of a global batch: each distinct one once, in one order on all processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rayzero.alignment.base import Batch
from rayzero.ops.collectives import gather_rows


def distinct_texts(rows: Tensor, batch: Batch, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """``rows`` (U, ...) of this process's texts as the group's distinct texts (T, ...), and positives (B, T).

    Equal on all processes but for ``positives``, whose rows are this process's images. Gradients flow back to the
    process that holds a text's first occurrence.
    """
    everyone = gather_rows(rows, group)
    ids = gather_rows(batch.text_ids, group)
    distinct, inverse = torch.unique(ids, return_inverse=True)
    first = torch.full_like(distinct, ids.numel()).scatter_reduce_(
        0, inverse, torch.arange(ids.numel(), device=ids.device), reduce="amin"
    )
    columns = torch.searchsorted(distinct, batch.text_ids)
    positives = batch.positives.new_zeros((batch.positives.shape[0], distinct.numel()))
    # Two columns of one distinct text (one text per image) say the same images.
    images, texts = batch.positives.nonzero(as_tuple=True)
    positives[images, columns[texts]] = True
    return everyone[first], positives
