"""Texts encoded in parts are the texts encoded at once."""

from __future__ import annotations

import numpy as np
import torch

from rayzero.alignment.base import TextFeatures
from rayzero.alignment.encoded import TEXT_BATCH, encode_texts


def test_parts_give_what_one_batch_gives() -> None:
    sizes: list[int] = []

    def encode(texts: list[str]) -> TextFeatures:
        sizes.append(len(texts))
        rows = torch.tensor([[float(text)] for text in texts])
        return TextFeatures(rows, rows[:, None], torch.ones(len(texts), 1, dtype=torch.bool))

    def score(part: TextFeatures) -> np.ndarray:
        return np.array([[1.0], [2.0]], dtype=np.float32) * part.pooled[:, 0].numpy()

    count = 2 * TEXT_BATCH + 3
    found = encode_texts(encode, [str(number) for number in range(count)])
    assert sizes == [TEXT_BATCH, TEXT_BATCH, 3]
    np.testing.assert_array_equal(found.logits(score, 2), np.outer([1, 2], np.arange(count)))
    for place in (0, TEXT_BATCH - 1, TEXT_BATCH, count - 1):
        assert found.one(place).pooled.tolist() == [[place]]
    assert encode_texts(encode, []).logits(score, 2).shape == (2, 0)
    assert len(sizes) == 3
