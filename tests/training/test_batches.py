"""Batches: which texts a step aligns, and how they are drawn."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from rayzero.config import DataConfig, load_config
from rayzero.encoders.text import TextEncoder, build_text
from rayzero.studies.examples import EXAMPLES
from rayzero.training.batches import collate, text_id
from tests.encoders.tiny import tiny_bert


def table_of(said: list[list[str]], reports: list[str] | None = None) -> pa.Table:
    pixels = np.arange(len(said) * 4, dtype=np.float16).reshape(len(said), 1, 2, 2)
    return pa.Table.from_pylist(
        [
            {
                "study_id": str(i),
                "image_id": str(i),
                "data": pixels[i].tobytes(),
                "shape": [1, 2, 2],
                "present": [],
                "sentences": sentences,
                "report": reports[i] if reports else "",
                "labels": [],
            }
            for i, sentences in enumerate(said)
        ],
        schema=EXAMPLES,
    )


@pytest.fixture
def text(tmp_path: Path) -> TextEncoder:
    return build_text(load_config(None, [f"text.encoder={tiny_bert(tmp_path)}"]).text)


def test_a_batch_holds_each_sentence_once(text: TextEncoder) -> None:
    said = [["There is edema", "There is a nodule"], ["There is a nodule"], []]
    batch = collate(table_of(said), text, DataConfig(), cached=False)
    assert batch.positives.tolist() == [[True, True], [True, False], [False, False]]
    assert batch.text_ids.tolist() == [text_id("There is a nodule"), text_id("There is edema")]
    assert batch.pixels is not None
    assert batch.features is None
    assert batch.present is None
    torch.testing.assert_close(batch.pixels, torch.arange(12.0).reshape(3, 1, 2, 2))
    with pytest.raises(ValueError, match="has a sentence"):
        collate(table_of([[]]), text, DataConfig(), cached=False)


def test_one_text_per_image_is_drawn_by_seed_step_and_study(text: TextEncoder) -> None:
    said = [[f"There is finding {i} of {j}" for i in range(9)] for j in range(3)] + [["There is edema"]] * 2
    sentence, caption = DataConfig(texts="sentence"), DataConfig(texts="caption")
    first, again, later, other = (
        collate(table_of(said), text, sentence, cached=False, seed=seed, step=step)
        for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first.text_ids.tolist() == again.text_ids.tolist()
    assert first.text_ids.tolist() != later.text_ids.tolist() != other.text_ids.tolist()
    # The same draw in any company: what one process draws does not depend on how many there are.
    alone = collate(table_of(said).slice(2, 1), text, DataConfig(texts="sentence"), cached=False)
    assert alone.text_ids[0] == first.text_ids[2]
    # Equal texts of two studies are positives of each other, never negatives.
    assert first.positives.int().tolist()[3:] == [[0, 0, 0, 1, 1]] * 2
    # Nor is what a study says, but did not have drawn.
    assert first.said is not None
    assert first.said.tolist()[0] == [text_id(one) for one in said[0]]
    assert first.said.tolist()[3] == [text_id("There is edema")] + [-1] * 8
    assert collate(table_of(said), text, caption, cached=False).said is None
    # A caption is five sentences joined: five times the words between [CLS] and [SEP].
    lengths = [collate(table_of(said[:1]), text, d, cached=False).texts.mask.sum() - 2 for d in (sentence, caption)]
    assert lengths[1] == 5 * lengths[0]


def test_a_report_keeps_all_its_sentences(text: TextEncoder) -> None:
    reports = ["Heart is large. Lungs clear? No edema!", " "]
    data = DataConfig(texts="report")
    seen = {
        int(collate(table_of([[], []], reports).slice(0, 1), text, data, cached=False, step=step).text_ids[0])
        for step in range(40)
    }
    orders = itertools.permutations(["Heart is large.", "Lungs clear?", "No edema!"])
    assert seen == {text_id(" ".join(order)) for order in orders}
    with pytest.raises(ValueError, match="study 1 has no report"):
        collate(table_of([[], []], reports), text, data, cached=False)


def test_a_batch_cuts_into_chunks_of_images_and_texts(text: TextEncoder) -> None:
    batch = collate(
        table_of([["There is edema", "There is a nodule"], ["There is gas"]]), text, DataConfig(), cached=False
    )
    parts = batch.chunks(2)
    assert [len(part) for part in parts] == [1, 1]
    torch.testing.assert_close(torch.cat([part.texts.ids for part in parts]), batch.texts.ids)
    torch.testing.assert_close(torch.cat([part.pixels for part in parts]), batch.pixels)
    with pytest.raises(ValueError, match="cannot be cut into 3"):
        batch.chunks(3)
