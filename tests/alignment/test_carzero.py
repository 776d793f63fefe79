"""CARZero: what it computes against the plain formula, its size, its errors, and processes against one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from rayzero.alignment.base import Batch
from rayzero.alignment.carzero import CARZero, CARZeroSettings, SimilarityDecoder
from rayzero.alignment.texts import share_texts
from rayzero.config import ConfigError
from rayzero.encoders.text import TextEncoder
from rayzero.ops.pairwise_attention import pairwise_attention_reference
from rayzero.training.batches import text_id
from tests.alignment.test_many_processes import SAID, batch, gradients
from tests.encoders.tiny import TinyVision, tiny_bert, tiny_text
from tests.processes import in_processes

SMALL = {"layers": 2, "heads": 2, "feedforward": 12, "head_widths": (6, 4), "text_layers": 2}
TEXTS = ["There is no effusion", "There is a nodule of the left lung", "edema"]


def model(folder: Path, **settings: object) -> CARZero:
    torch.manual_seed(0)
    built = CARZero(TinyVision(), tiny_text(folder), CARZeroSettings(**{**SMALL, **settings})).double()  # type: ignore[arg-type]
    with torch.no_grad():  # at N(0, 0.02) all pairs look the same
        for name, parameter in built.decoder.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(30.0)
            elif "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return built.eval()  # no dropout: its draws differ between layouts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(3)
    tiny_bert(path)
    return path


def pixels(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("slots", [None, 97])
@pytest.mark.parametrize("head_widths", [(6, 4), ()])
def test_scores_are_the_mean_of_both_directions_of_the_formula(
    slots: int | None, head_widths: tuple[int, ...], folder: Path
) -> None:
    network = model(folder, word_slots=slots, head_widths=head_widths)
    image, text = network.encode_image(pixels(2)), network.encode_prompts(TEXTS)
    to_text, attention = pairwise_attention_reference(
        torch.cat([image.pooled.unsqueeze(1), image.tokens], dim=1), text.pooled, network.decoder.weights(), 2
    )
    # All 97 slots spelled out as published, or only the words.
    count = slots or text.tokens.shape[1]
    words = F.pad(text.tokens, (0, 0, 0, count - text.tokens.shape[1]))
    mask = F.pad(text.mask, (0, count - text.mask.shape[1]), value=False) if slots is None else None
    mask = None if mask is None else torch.cat([mask.new_ones(3, 1), mask], dim=1)
    to_image, _ = pairwise_attention_reference(
        torch.cat([text.pooled.unsqueeze(1), words], dim=1), image.pooled, network.decoder.weights(), 2, mask=mask
    )
    torch.testing.assert_close(network.score(image, text), (to_text + to_image.T) / 2, rtol=1e-12, atol=1e-12)
    maps = network.similarity_map(image, text)
    assert maps.shape == (2, 3, 4, 4)
    torch.testing.assert_close(maps, (attention[..., 1:] * 17).log().reshape(2, 3, 4, 4), rtol=1e-12, atol=1e-12)
    assert float(to_text.detach().std(dim=1).min()) > 1e-3


@pytest.mark.parametrize("slots", [None, 97])
def test_the_length_of_other_texts_changes_no_score(slots: int | None, folder: Path) -> None:
    network = model(folder, word_slots=slots)
    image = network.encode_image(pixels(2))
    together = network.score(image, network.encode_prompts(TEXTS))
    alone = torch.cat([network.score(image, network.encode_prompts([text])) for text in TEXTS], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_the_published_global_counts_empty_slots_and_ours_does_not(folder: Path) -> None:
    published, ours = model(folder, word_slots=97), model(folder)
    few, many = (published.encode_prompts([text]) for text in (TEXTS[2], TEXTS[1]))
    assert int(few.mask.sum()) == 3  # [CLS] edema [SEP]
    torch.testing.assert_close(few.pooled, few.tokens.sum(dim=1) / 97)
    for text, words in ((TEXTS[2], 3), (TEXTS[1], 10)):
        masked = ours.encode_prompts([text])
        torch.testing.assert_close(masked.pooled, masked.tokens.sum(dim=1) / words)
    assert not torch.equal(few.pooled, many.pooled)


def test_size_at_the_papers_width() -> None:
    with torch.device("meta"):
        published = SimilarityDecoder(768, CARZeroSettings())
        linear = SimilarityDecoder(768, CARZeroSettings(head_widths=()))
    used = sum(parameter.numel() for parameter in published.parameters())
    assert used == 17_205_761
    # What the published module holds besides: four self-attentions, their norms, and a temperature; 26.66 M in all.
    unused = 4 * (4 * 768 * 768 + 4 * 768 + 2 * 768) + 1
    assert unused == 9_455_617
    assert round((used + unused) / 1e6, 2) == 26.66
    head = 768 * 1024 + 1024 + 1024 * 512 + 512 + 512 * 256 + 256 + 256 + 1
    assert sum(parameter.numel() for parameter in linear.parameters()) == used - head + 769


def test_initial_weights_are_the_published_ones() -> None:
    torch.manual_seed(0)
    decoder = SimilarityDecoder(64, CARZeroSettings())
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 2:
            assert 0.018 < float(parameter.detach().std()) < 0.022, name
        elif name.removesuffix("_bias").endswith(("query", "key", "value", "output")):
            assert not bool(parameter.any()), name
        elif "norm" in name:
            assert bool((parameter == float(not name.endswith("bias"))).all()), name
        else:
            assert 0.0 < float(parameter.detach().abs().max()) <= 1.0, name


@pytest.mark.parametrize("slots", [None, 97])
def test_every_parameter_learns(slots: int | None, folder: Path) -> None:
    network = model(folder, word_slots=slots, dropout=0.1).train()
    loss = network(batch(network.text, range(len(SAID))))["loss"]
    loss.backward()
    # Position embeddings beyond the longest text, and words that no text has, are rows of one table.
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert not without
    # A key bias moves all logits of a query alike, the head's last bias all scores: softmax sees neither.
    still = {name for name, p in network.named_parameters() if float(p.grad.abs().max()) < 1e-18}  # type: ignore[union-attr]
    assert all(name.endswith(("key_bias", "key.bias", "head2_bias")) for name in still), still


def test_one_positive_each_is_the_published_loss(folder: Path) -> None:
    """CE over rows and columns of each matrix, halved, and the two added."""
    network = model(folder)
    texts = ["There is edema", "There is a mass", "There is a nodule"]
    examples = one_text_each(network.text, texts, [0, 1, 2])
    loss = network.loss(replace(examples, said=None))
    image, text = network.encode_image(examples.pixels), network.encode_text(examples.texts)
    target = torch.arange(3)
    to_text = network._to_text(image.pooled, image.tokens, text.pooled)
    to_image = network._to_image(text.pooled, text.tokens, text.mask, image.pooled)
    ce = [(F.cross_entropy(x, target) + F.cross_entropy(x.T, target)) / 2 for x in (to_text, to_image)]
    # Distinct texts are put in an order of their own, which no term depends on.
    torch.testing.assert_close(loss["image_to_text"], ce[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss["text_to_image"], ce[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss["loss"], ce[0] + ce[1], rtol=1e-12, atol=1e-12)


def test_equal_sentences_are_no_negatives_of_each_other(folder: Path) -> None:
    """One sentence drawn per image: drawing the same one twice is one text with two images, not a contradiction."""
    network = model(folder)
    drawn = ["There is edema", "There is edema", "There is a mass"]
    merged = Batch(
        texts=network.text.tokenize(["There is edema", "There is a mass"]),
        text_ids=torch.tensor([text_id("There is edema"), text_id("There is a mass")]),
        positives=torch.tensor([[True, False], [True, False], [False, True]]),
        pixels=pixels(3),
    )
    ours = network.loss(one_text_each(network.text, drawn, [0, 1, 2]))["loss"]
    torch.testing.assert_close(ours, network.loss(merged)["loss"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_without_negatives_has_loss_zero_and_finite_gradients(count: int, folder: Path) -> None:
    network = model(folder)
    loss = network.loss(one_text_each(network.text, ["There is edema"] * count, list(range(count))))["loss"]
    loss.backward()
    assert float(loss) == 0.0
    assert all(bool(grad.isfinite().all()) for grad in gradients(network).values())


def test_bad_input_is_refused(folder: Path) -> None:
    network = model(folder)
    image, text = network.encode_image(pixels(2)), network.encode_prompts(TEXTS)
    with pytest.raises(ValueError, match="no text was given"):
        network.encode_prompts([])
    with pytest.raises(ValueError, match="2 images and 0 texts"):
        network.score(image, text.rows(slice(0, 0)))
    with pytest.raises(ValueError, match="either pixels or cached features"):
        network.encode_image()
    with pytest.raises(ValueError, match="single radiographs"):
        network.encode_image(pixels(2), present=torch.ones(2, 4, dtype=torch.bool))
    mute = replace(batch(network.text, range(3)), positives=torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="nothing to align"):
        network.loss(mute)
    with pytest.raises(ConfigError, match=r"text\.max_tokens=16 may fill more than model\.word_slots=8"):
        model(folder, word_slots=8)
    with pytest.raises(ConfigError, match=r"model\.heads=3 does not divide the width 8"):
        model(folder, heads=3)
    with pytest.raises(ConfigError, match=r"model\.text_layers=3: this text encoder has 2 layers"):
        model(folder, text_layers=3)


def one_text_each(text: TextEncoder, drawn: list[str], images: list[int]) -> Batch:
    """A batch as ``data.texts=sentence`` makes it: text i was drawn from the study of image i."""
    return Batch(
        texts=text.tokenize(drawn),
        text_ids=torch.tensor([text_id(one) for one in drawn]),
        positives=torch.tensor([[one == other for other in drawn] for one in drawn]),
        pixels=pixels(6)[images],
        # The study that a mass was drawn from may say edema as well; some say one thing alone.
        said=torch.tensor(
            [
                [text_id(one), text_id("There is edema") if index % 2 else -1]
                for one, index in zip(drawn, images, strict=True)
            ]
        ),
    )


DRAWN = [
    "There is edema",
    "There is a mass",
    "There is edema",
    "There is a nodule",
    "There is edema",
    "There is a mass",
]


KINDS = ("sentences", "sentence")


def share_of(network: CARZero, images: range, kind: str) -> Batch:
    if kind == "sentences":
        return batch(network.text, images)
    return one_text_each(network.text, [DRAWN[i] for i in images], list(images))


def process(rank: int, folder: str, store: str) -> None:
    world = dist.get_world_size()
    # Unequal shares: the last process takes the rest.
    images = range(rank, rank + 1) if rank < world - 1 else range(world - 1, len(SAID))
    for kind in KINDS:
        network = model(Path(folder), word_slots=97, balanced=True)
        examples = share_of(network, images, kind)
        taken = len(share_texts(examples, None).mine)
        loss = network.loss(examples, None)["loss"]
        loss.backward()
        grads = gradients(network)
        for grad in grads.values():
            dist.all_reduce(grad)
            grad /= world  # what a training engine does
        torch.save({"loss": loss.detach(), "grads": grads, "taken": taken}, f"{store}/{kind}{rank}.pt")


@pytest.mark.parametrize("world", [2, 4])
def test_processes_equal_one(world: int, folder: Path, tmp_path: Path) -> None:
    in_processes(world, process, str(folder), str(tmp_path))
    for kind in KINDS:
        network = model(folder, word_slots=97, balanced=True)
        whole = share_of(network, range(len(SAID)), kind)
        loss = network.loss(whole)["loss"]
        loss.backward()
        expected = gradients(network)
        taken = 0
        for rank in range(world):
            got = torch.load(tmp_path / f"{kind}{rank}.pt", weights_only=True)
            taken += got["taken"]
            torch.testing.assert_close(got["loss"], loss.detach(), rtol=0, atol=1e-12)
            assert got["grads"].keys() == expected.keys()
            for name, grad in expected.items():
                torch.testing.assert_close(got["grads"][name], grad, rtol=1e-9, atol=1e-12, msg=name)
        # Each distinct text is the work of one process alone.
        assert taken == len(whole.text_ids.unique())
