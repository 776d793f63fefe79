"""Word pieces become words: sums per word and over layers, zeros elsewhere, against a plain loop."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from rayzero.config import ConfigError
from rayzero.encoders.text import TextEncoder
from rayzero.encoders.words import WordAggregation

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "there", "is", "cardio", "##megal", "##y", "pneumo", "##thorax"]
SENTENCES = ["There is cardiomegaly", "There is pneumothorax there is cardiomegaly", "is"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    size = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(PIECES), **size)).save_pretrained(folder)
    return TextEncoder(str(folder), max_tokens=32, pretrained=True).double().eval()


def test_pieces_of_a_word_and_the_last_layers_are_summed(encoder: TextEncoder) -> None:
    tokens = encoder.tokenize(SENTENCES)
    hidden = encoder.hidden_states(tokens)
    assert len(hidden) == 4
    words = WordAggregation(encoder, 2)
    ours, mask = words(hidden, tokens), words.mask(tokens)
    pieces = hidden[-1] + hidden[-2]
    encoded = encoder.tokenizer(SENTENCES, padding=True)
    expected, counts = torch.zeros_like(ours), []
    for row in range(len(SENTENCES)):
        slot, previous = -1, object()
        for column, present in enumerate(encoded["attention_mask"][row]):
            if not present:
                break
            word = encoded.word_ids(row)[column]
            if word is None or word != previous:
                slot += 1
            previous = word
            expected[row, slot] += pieces[row, column]
        counts.append(slot + 1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)
    assert counts == [5, 8, 3]
    assert mask.sum(dim=1).tolist() == counts
    assert torch.equal(mask, torch.arange(mask.shape[1]) < torch.tensor(counts).unsqueeze(1))
    assert not bool(ours[~mask].any())


def test_more_layers_than_there_are_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ConfigError, match=r"model\.text_layers=4: this text encoder has 3 layers"):
        WordAggregation(encoder, 4)
