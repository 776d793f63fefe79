"""The texts of a global batch: each distinct one once, in one order on all processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rayzero.alignment.base import Batch
from rayzero.ops.collectives import gather_rows, rank_in


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
    return everyone[first], _positives(batch, distinct)


def _positives(batch: Batch, distinct: Tensor) -> Tensor:
    """Which of the ``distinct`` texts (T,), sorted ids, the studies of ``batch`` say (B, T)."""
    positives = batch.positives.new_zeros((len(batch), len(distinct)))
    # Two columns of one distinct text (one text per image) say the same images.
    images, texts = batch.positives.nonzero(as_tuple=True)
    positives[images, torch.searchsorted(distinct, batch.text_ids[texts])] = True
    if batch.said is not None:
        positives |= (batch.said.unsqueeze(2) == distinct).any(dim=1)
    return positives


@dataclass(frozen=True)
class SharedTexts:
    """The group's T distinct texts, each taken care of by one of the processes that hold it.

    ``mine`` (t,) are the rows of this process's texts that it takes; gathering such rows over the group gives all T in
    their order. ``positives`` (B, T) are those of this process's images, ``of_mine`` (t, B_all) those of the texts
    that it takes, over all images of the group.
    """

    mine: Tensor
    positives: Tensor
    of_mine: Tensor


def share_texts(batch: Batch, group: ProcessGroup | None) -> SharedTexts:
    """Share out the distinct texts of the group.

    Among several processes (or places) that hold a text its id decides, so that common sentences, which most hold,
    do not all fall to the first one.
    """
    count, rank = len(batch.text_ids), rank_in(group)
    place = torch.arange(count, device=batch.text_ids.device)
    held = gather_rows(torch.stack([batch.text_ids, torch.full_like(place, rank), place], dim=1), group)
    distinct, inverse, copies = torch.unique(held[:, 0], return_inverse=True, return_counts=True)
    by_text = torch.argsort(inverse, stable=True)
    chosen = by_text[copies.cumsum(0) - copies + distinct % copies].sort().values
    positives = _positives(batch, distinct)[:, inverse[chosen]]
    taken = held[chosen, 1] == rank
    # NCCL and gloo differ in what they do with booleans.
    everyone = gather_rows(positives.to(torch.uint8), group).bool()
    return SharedTexts(held[chosen[taken], 2], positives, everyone[:, taken].T)
