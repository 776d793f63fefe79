"""Word pieces become words: sums per word, zeros elsewhere, against a plain loop."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tokenizers.models import BPE
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


def test_the_pieces_of_a_word_are_summed(encoder: TextEncoder) -> None:
    tokens = encoder.tokenize(SENTENCES)
    pieces, words = encoder.layers(tokens, 2), WordAggregation(encoder)
    ours, mask = words(pieces, tokens), words.mask(tokens)
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


def test_other_tokenizers_are_refused(encoder: TextEncoder) -> None:
    other = deepcopy(encoder)
    other.tokenizer.backend_tokenizer.model = BPE()
    with pytest.raises(ConfigError, match="has a BPE tokenizer"):
        WordAggregation(other)
