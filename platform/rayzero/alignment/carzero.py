"""CARZero (arXiv 2402.17417): a learned cross-attention in place of the cosine of an image and a text.

A decoder that both directions share reads the tokens of one side with the vector of the other as its query, and a
head maps what it has become to one number (``rayzero.ops.pairwise_attention``; CARZero spec, section 4):

    image to text:  memory = [global; patches] of the image,  query = global of the text
    text to image:  memory = [global; words] of the text,     query = global of the image
    score = (image to text + text to image) / 2,              loss = InfoNCE of each, both ways (section 5)

There is no temperature: the head learns the scale.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from rayzero.alignment.base import AlignmentModel, Batch, ImageFeatures, TextFeatures
from rayzero.alignment.registry import System, register
from rayzero.alignment.texts import share_texts
from rayzero.config import Config, ConfigError, Settings, validate
from rayzero.encoders.text import TextEncoder, TokenBatch, build_text
from rayzero.encoders.transformer import Adapter
from rayzero.encoders.vision import VisionEncoder, build_vision
from rayzero.encoders.words import WordAggregation
from rayzero.ops.collectives import gather_rows
from rayzero.ops.contrastive import multi_positive_nce
from rayzero.ops.pairwise_attention import pairwise_attention, pairwise_attention_maps
from rayzero.ops.pairwise_decoder import DecoderWeights, LayerWeights


class CARZeroSettings(Settings):
    """``model.*`` of a CARZero run."""

    layers: int = Field(4, ge=1, le=24, description="Decoder layers")
    heads: int = Field(4, ge=1)
    feedforward: int = Field(1024, ge=1, description="Hidden width of a layer's feed-forward part")
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    head_widths: tuple[int, ...] = Field(
        (1024, 512, 256), description="Hidden widths of the scoring head; empty is the linear head of the paper's text"
    )
    text_layers: int = Field(4, ge=1, description="Last layers of the text encoder that are summed")
    word_slots: int | None = Field(
        None,
        ge=2,
        description="Word slots of a sentence; empty ones take part as zeros (97 as published). null: words only",
    )
    balanced: bool = Field(False, description="Each distinct sentence weighs the same; false is as published")


class SimilarityDecoder(nn.Module):
    """The decoder's weights, 17.2 M at the paper's size, and its two uses.

    The published module holds 9.46 M more that nothing uses (self-attention, its norm, a temperature); a parameter
    without gradient stalls ZeRO, and they are left out. All weights belong to this module itself, not to layers
    inside it: ZeRO-3 then gathers them around ``forward`` and its backward pass, where they are used.

    Raises ConfigError when ``width`` is not a multiple of ``heads``.
    """

    norm: nn.Parameter
    norm_bias: nn.Parameter

    def __init__(self, width: int, settings: CARZeroSettings) -> None:
        super().__init__()
        if width % settings.heads:
            raise ConfigError(f"model.heads={settings.heads} does not divide the width {width} of the text encoder")
        self.heads, self.depth, self.dropout = settings.heads, settings.layers, settings.dropout
        self.parts = len(settings.head_widths) + 1
        hidden, sizes = settings.feedforward, (width, *settings.head_widths, 1)
        self._norm("norm", width)
        for index in range(self.depth):
            layer = f"layer{index}_"
            self._norm(f"{layer}attention_norm", width)
            for name in ("query", "key", "value", "output"):
                self._linear(f"{layer}{name}", width, width, bias=0.0)
            self._norm(f"{layer}feedforward_norm", width)
            self._linear(f"{layer}expand", width, hidden)
            self._linear(f"{layer}contract", hidden, width)
        for index in range(self.parts):
            self._linear(f"head{index}", sizes[index], sizes[index + 1])

    def weights(self) -> DecoderWeights:
        """The parameters as ``rayzero.ops`` takes them."""
        layers = tuple(
            LayerWeights(*(getattr(self, f"layer{index}_{name}") for name in LayerWeights._fields))
            for index in range(self.depth)
        )
        head = tuple((getattr(self, f"head{index}"), getattr(self, f"head{index}_bias")) for index in range(self.parts))
        return DecoderWeights(self.norm, self.norm_bias, layers, head)

    def forward(
        self, memory: Tensor, queries: Tensor, *, mask: Tensor | None = None, zeros: Tensor | None = None
    ) -> Tensor:
        """Scores (M, Q), see ``pairwise_attention``."""
        dropout = self.dropout if self.training else 0.0
        return pairwise_attention(memory, queries, self.weights(), self.heads, mask=mask, zeros=zeros, dropout=dropout)

    def maps(self, memory: Tensor, queries: Tensor) -> Tensor:
        """Attention (M, Q, S), see ``pairwise_attention_maps``."""
        return pairwise_attention_maps(memory, queries, self.weights(), self.heads)

    def _norm(self, name: str, width: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.ones(width)))
        self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(width)))

    def _linear(self, name: str, into: int, out: int, bias: float | None = None) -> None:
        """Weights from N(0, 0.02); the bias as PyTorch has it, which is ``bias`` inside attention."""
        bound = 1.0 / math.sqrt(into) if bias is None else bias
        self.register_parameter(name, nn.Parameter(torch.randn(out, into) * 0.02))
        self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(out).uniform_(-bound, bound)))


class CARZero(AlignmentModel):
    """CARZero over any vision encoder, and any text encoder with a WordPiece tokenizer.

    The decoder has the text encoder's width, as published; a vision encoder of another width is brought to it as in
    RadZero. The global of an image is its CLS token, or the mean of its tokens where the encoder (a CNN) has none.
    """

    def __init__(self, vision: VisionEncoder, text: TextEncoder, settings: CARZeroSettings) -> None:
        super().__init__()
        if settings.word_slots is not None and text.max_tokens > settings.word_slots:
            raise ConfigError(
                f"text.max_tokens={text.max_tokens} may fill more than model.word_slots={settings.word_slots}; "
                "lower the one or raise the other"
            )
        self.vision, self.text = vision, text
        self.words, self.text_layers = WordAggregation(text), settings.text_layers
        text.check_layers(settings.text_layers)
        self.slots, self.balanced = settings.word_slots, settings.balanced
        self.adapter = None if vision.width == text.width else Adapter(vision, text.width)
        self.decoder = SimilarityDecoder(text.width, settings)

    def encode_image(
        self, pixels: Tensor | None = None, *, features: Tensor | None = None, present: Tensor | None = None
    ) -> ImageFeatures:
        """``pooled`` (B, D) is the global, ``tokens`` (B, N, D) the patches without prefix tokens."""
        if (pixels is None) == (features is None) or present is not None:
            raise ValueError("encode_image takes single radiographs, either pixels or cached features")
        hidden = self.vision(pixels) if features is None else features.to(self.decoder.norm.dtype)
        if self.adapter is not None:
            hidden = self.adapter(hidden)
        patches = hidden[:, self.vision.num_prefix :]
        pooled = hidden[:, 0] if self.vision.num_prefix else patches.mean(dim=1)
        return ImageFeatures(pooled=pooled, tokens=patches, grid=self.vision.grid)

    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """``tokens`` (T, L, D) are words, ``pooled`` (T, D) their mean: over the words, or over all published slots."""
        words = self.words(self.text.layers(tokens, self.text_layers), tokens)
        mask = self.words.mask(tokens)
        count = mask.sum(dim=1, keepdim=True) if self.slots is None else self.slots
        return TextFeatures(pooled=words.sum(dim=1) / count, tokens=words, mask=mask)

    def score(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Logits (B, T): the mean of the two directions, without temperature. Raises ValueError without a text."""
        if len(text.pooled) == 0 or len(image.pooled) == 0:
            raise ValueError(f"nothing to score: {len(image.pooled)} images and {len(text.pooled)} texts")
        to_text = self._to_text(image.pooled, image.tokens, text.pooled)
        to_image = self._to_image(text.pooled, text.tokens, text.mask, image.pooled)
        return (to_text + to_image.T) / 2

    def similarity_map(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Patch logits (B, T, h, w): log of the image-to-text attention over a uniform one, mean of heads and layers.

        The logarithm changes no ranking and gives small attention weights the resolution of logits.
        """
        memory = torch.cat([image.pooled.unsqueeze(1), image.tokens], dim=1)
        attention = self.decoder.maps(memory, text.pooled)[..., 1:] * memory.shape[1]
        logits = attention.clamp(min=torch.finfo(attention.dtype).tiny).log()
        return logits.reshape(*logits.shape[:2], *image.grid)

    def represent(self, batch: Batch) -> dict[str, Tensor]:
        """Globals (B, D) and (U, D), patches (B, N, D), and words (U, L, D)."""
        image = self.encode_image(batch.pixels, features=batch.features, present=batch.present)
        text = self.encode_text(batch.texts)
        return {"images": image.pooled, "patches": image.tokens, "texts": text.pooled, "words": text.tokens}

    def objective(
        self, represented: dict[str, Tensor], batch: Batch, group: ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        """Multi-positive NCE of each direction over the group's images and distinct texts (section 5).

        A process scores its own images against all texts and its share of the texts against all images: of what
        the other side holds only the globals travel (section 9, reduction 6). Equal texts, negatives of each other
        as published, are one text with several positives.
        """
        shared = share_texts(batch, group)
        mine = shared.mine
        texts, images = gather_rows(represented["texts"][mine], group), gather_rows(represented["images"], group)
        to_text = self._to_text(represented["images"], represented["patches"], texts)
        mask = self.words.mask(batch.texts)[mine]
        to_image = self._to_image(represented["texts"][mine], represented["words"][mine], mask, images)
        parts = {
            "image_to_text": multi_positive_nce(to_text, shared.positives, balanced=self.balanced, group=group),
            "text_to_image": multi_positive_nce(
                to_image, shared.of_mine, balanced=self.balanced, texts_on_rows=True, group=group
            ),
        }
        return {"loss": parts["image_to_text"] + parts["text_to_image"], **{k: v.detach() for k, v in parts.items()}}

    def _to_text(self, images: Tensor, patches: Tensor, texts: Tensor) -> Tensor:
        scores: Tensor = self.decoder(torch.cat([images.unsqueeze(1), patches], dim=1), texts)
        return scores

    def _to_image(self, texts: Tensor, words: Tensor, mask: Tensor, images: Tensor) -> Tensor:
        memory = torch.cat([texts.unsqueeze(1), words], dim=1)
        zeros = None if self.slots is None else self.slots - mask.sum(dim=1)
        there = torch.cat([mask.new_ones((len(mask), 1)), mask], dim=1)
        scores: Tensor = self.decoder(memory, images, mask=there, zeros=zeros)
        return scores


def _build(config: Config) -> CARZero:
    settings = validate(CARZeroSettings, config.model, where="model")
    return CARZero(build_vision(config.vision), build_text(config.text), settings)


register("carzero", System(CARZeroSettings, _build))
