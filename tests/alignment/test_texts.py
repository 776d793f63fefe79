"""The texts of a global batch and who says them."""

from __future__ import annotations

from dataclasses import replace

import torch

from rayzero.alignment.base import Batch
from rayzero.alignment.texts import distinct_texts, share_texts
from rayzero.encoders.text import TokenBatch


def test_a_drawn_sentence_is_a_positive_of_every_study_that_says_it() -> None:
    ids = torch.tensor([30, 10, 30, 20])
    drawn = Batch(
        texts=TokenBatch(torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1, dtype=torch.long)),
        text_ids=ids,
        positives=ids[:, None] == ids,
        pixels=torch.zeros(4, 1, 2, 2),
    )
    rows = torch.arange(4.0).unsqueeze(1)
    texts, positives = distinct_texts(rows, drawn, None)
    assert texts.flatten().tolist() == [1, 3, 0]  # in the order of their ids
    assert positives.int().tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
    said = torch.tensor([[30, 20, -1], [10, -1, -1], [30, 40, 10], [20, -1, -1]])
    _, positives = distinct_texts(rows, replace(drawn, said=said), None)
    assert positives.int().tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 1], [0, 1, 0]]
    shared = share_texts(replace(drawn, said=said), None)
    order = ids[shared.mine].sort(stable=True).indices
    assert shared.positives[:, order].int().tolist() == positives.int().tolist()
