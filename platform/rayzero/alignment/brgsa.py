"""BrgSA (arXiv 2501.03565): CT volumes and reports aligned directly, and once more across a shared knowledge bank.

A 3-D encoder's CLS token gives v, the summed last layers of a text encoder give t. Both are read off one learned
bank M (K, D) as well, v^ = softmax(v M^T) M and t^ likewise, and the two pairs are aligned (spec, sections 2 to 5):

    loss = NCE(v, t) + 0.5 (|v^ - v|^2 + |t^ - t|^2) / D + NCE(v^, t^),    score = (cos(v, t) + cos(v^, t)) / 2

NCE is the sum of both directions at a fixed temperature.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from rayzero.alignment.base import AlignmentModel, Batch, ImageFeatures, TextFeatures
from rayzero.alignment.registry import System, register
from rayzero.alignment.texts import distinct_texts
from rayzero.config import Config, ConfigError, Settings, validate
from rayzero.encoders.text import TextEncoder, TokenBatch, build_text
from rayzero.encoders.transformer import Adapter, Block, Transformer
from rayzero.encoders.vision import VisionEncoder, build_vision
from rayzero.encoders.volume import ViT3D
from rayzero.ops.bank_attention import knowledge_bank
from rayzero.ops.collectives import shared_value, sum_over_processes
from rayzero.ops.contrastive import multi_positive_nce
from rayzero.ops.precision import as_given, wide
from rayzero.ops.rollout import gradient_rollout

Pairing = Literal["direct", "image", "text", "both", "published"]
# Which vectors are compared: (image from the bank?, text from the bank?).
_PAIRS: Mapping[Pairing, tuple[tuple[bool, bool], ...]] = {
    "direct": ((False, False),),
    "image": ((True, False),),
    "text": ((False, True),),
    "both": ((True, True),),
    "published": ((False, False), (True, False)),
}


class BrgSASettings(Settings):
    """``model.*`` of a BrgSA run."""

    width: int = Field(768, ge=1, description="Width of the shared space, and of the blocks if there are any")
    bank_size: int = Field(2048, ge=1, description="Rows of the knowledge bank")
    blocks: int = Field(0, ge=0, le=24, description="Trainable blocks on an encoder that is frozen or has no CLS")
    heads: int = Field(12, ge=1)
    text_layers: int = Field(4, ge=1, description="Last layers of the text encoder that are summed")
    pooling: Literal["sum", "mean"] = Field(
        "sum",
        description="Word vectors are divided by text.max_tokens, as published, so that a prompt is shorter than a "
        "caption in norm, too; or by the words there are",
    )
    pairing: Pairing = Field(
        "published",
        description="What a score compares: v and t as they are, or read off the bank on the image side, the text "
        "side or both; published is the mean of direct and image",
    )
    temperature: float = Field(0.1, gt=0.0, description="Divides cosines; fixed")
    alignment_weight: float = Field(1.0, ge=0.0, description="Of NCE(v, t)")
    reconstruction_weight: float = Field(0.5, ge=0.0, description="Of the distance between v and v^, t and t^")
    bridged_weight: float = Field(1.0, ge=0.0, description="Of NCE(v^, t^)")
    crop: tuple[int, int, int] | None = Field(
        None, description="Training sees a random crop (z, y, x) of each volume; null shows it whole"
    )


class KnowledgeBank(nn.Module):
    """The bank M (K, D) that both sides read, with orthonormal columns (rows where K < D) at first."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(size, width))
        nn.init.orthogonal_(self.rows)

    def forward(self, queries: Tensor) -> Tensor:
        """softmax(queries M^T) M for ``queries`` (n, D): neither scaled nor normalised (spec, section 4)."""
        return knowledge_bank(queries, self.rows) if len(queries) else queries


class Trunk(nn.Module):
    """Trainable blocks on the tokens of a volume encoder: an adapter, a CLS token, blocks, a norm."""

    def __init__(self, vision: VisionEncoder, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.adapter = Adapter(vision, width)
        self.transformer = Transformer(width, depth, heads)

    def forward(self, tokens: Tensor, *, cls_only: bool = False) -> Tensor:
        """Tokens (B, N, C) to (B, 1 + N, width), or CLS alone."""
        done: Tensor = self.transformer(self.adapter(tokens), cls_only=cls_only)
        return done


class BrgSA(AlignmentModel):
    """BrgSA over a 3-D ViT of its own, or with trainable blocks over any volume encoder.

    Raises ConfigError when the encoder has no CLS token and there are no blocks to give it one.
    """

    def __init__(self, vision: VisionEncoder, text: TextEncoder, settings: BrgSASettings) -> None:
        super().__init__()
        if not settings.blocks and not isinstance(vision, ViT3D):
            raise ConfigError("model.blocks=0 needs a 3-D ViT (vision.encoder=vit3d-base); give 1 or more here")
        text.check_layers(settings.text_layers)
        self.vision, self.text, self.settings = vision, text, settings
        self.trunk = Trunk(vision, settings.width, settings.blocks, settings.heads) if settings.blocks else None
        self.image_projection = nn.Linear(settings.width if settings.blocks else vision.width, settings.width)
        self.text_projection = nn.Linear(text.width, settings.width)
        self.bank = KnowledgeBank(settings.bank_size, settings.width)

    def encode_image(
        self, pixels: Tensor | None = None, *, features: Tensor | None = None, present: Tensor | None = None
    ) -> ImageFeatures:
        """Image vectors v (B, D), and patch tokens under the same projection (B, N, D) for maps."""
        if present is not None:
            raise ValueError("encode_image takes volumes; there are no views that could be present or absent")
        hidden = self._hidden(pixels, features)
        patches, before = math.prod(self.vision.grid), 1 if self.trunk is None else 1 + self.vision.num_prefix
        if hidden.shape[1] != before + patches:
            raise ValueError(
                f"{hidden.shape[1] - before} patches for the grid {self.vision.grid}: volumes must be data.volume_shape"
            )
        projected = self.image_projection(hidden)
        return ImageFeatures(pooled=projected[:, 0], tokens=projected[:, before:], grid=self.vision.grid)

    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """Text vectors t (T, D), and the summed word vectors behind them (spec, section 2).

        [CLS] and [SEP] count as words. The published grouping of word pieces changes nothing in a sum.
        """
        words = self.text.layers(tokens, self.settings.text_layers)
        mask = tokens.mask.unsqueeze(-1).to(words.dtype)
        slots = mask.sum(dim=1) if self.settings.pooling == "mean" else float(self.text.max_tokens)
        pooled = (words * mask).sum(dim=1) / slots
        return TextFeatures(pooled=self.text_projection(pooled), tokens=words, mask=tokens.mask.bool())

    def score(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Logits (B, T): the mean cosine of the pairs that ``model.pairing`` names, over the temperature."""
        return self._score(image.pooled, text.pooled)

    def similarity_map(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Patch logits (B, T, z, h, w): cosine of each patch and t over the temperature (spec, section 7)."""
        with as_given(image.tokens):
            scores = torch.einsum("td,bnd->btn", _unit(text.pooled), _unit(image.tokens)) / self.settings.temperature
        return scores.reshape(*scores.shape[:2], *image.grid)

    def rollout_map(
        self, text: TextFeatures, pixels: Tensor | None = None, *, features: Tensor | None = None
    ) -> Tensor:
        """Gradient-weighted attention rollout of the score (B, T, z, h, w), each map with its maximum at 1.

        Costs a backward pass for each text, so it takes the images themselves and not their features.
        """
        if self.trunk is None:
            assert isinstance(self.vision, ViT3D)
            transformer, embedded = self.vision.transformer, self.vision.embed(_given(pixels))
        else:
            given = self.vision(_given(pixels)) if features is None else features.to(self.bank.rows.dtype)
            transformer, embedded = self.trunk.transformer, self.trunk.adapter(given)
        tokens, patches = transformer.prepend(embedded), math.prod(self.vision.grid)
        layers = cast("Iterable[Block]", transformer.blocks)
        maps = []
        for vector in text.pooled.detach():

            def objective(last: Tensor, vector: Tensor = vector) -> Tensor:
                return self._score(self.image_projection(transformer.norm(last[:, 0])), vector[None])[:, 0]

            maps.append(gradient_rollout(layers, tokens, objective)[:, -patches:])
        weights = torch.stack(maps, dim=1) if maps else tokens.new_zeros(len(tokens), 0, patches)
        # Where CLS attends to itself alone the map is nothing, and stays so.
        weights = weights / weights.amax(dim=-1, keepdim=True).clamp(min=1e-30)
        return weights.reshape(*weights.shape[:2], *self.vision.grid)

    def represent(self, batch: Batch) -> dict[str, Tensor]:
        """v and v^ (B, D), t and t^ (U, D), unit length left to the objective."""
        if batch.present is not None:
            raise ValueError("BrgSA reads volumes, which have no views; set data.input=volume")
        pixels = batch.pixels
        if self.training and self.settings.crop is not None:
            pixels = random_crop(_given(pixels), self.settings.crop)
        image = self.image_projection(self._hidden(pixels, batch.features, cls_only=True)[:, 0])
        text = self.encode_text(batch.texts).pooled
        return {"image": image, "bridged_image": self.bank(image), "text": text, "bridged_text": self.bank(text)}

    def objective(
        self, represented: dict[str, Tensor], batch: Batch, group: ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        """The three losses over the group's volumes and distinct captions (spec, section 5).

        A caption that several studies drew is one text, positive for each of them. Volumes stay where they are:
        t and t^ alone are gathered. Without repeated captions this is the published sum of two cross-entropies.
        """
        image, bridged_image = represented["image"], represented["bridged_image"]
        text, bridged_text = represented["text"], represented["bridged_text"]
        both, positives = distinct_texts(torch.cat([text, bridged_text], dim=1), batch, group)
        everyone, everyone_bridged = both.chunk(2, dim=1)
        settings = self.settings
        parts = {
            "alignment": self._contrast(image, everyone, positives, group),
            "bridged": self._contrast(bridged_image, everyone_bridged, positives, group),
            "reconstruction": _distance(image, bridged_image, group) + _distance(text, bridged_text, group),
        }
        loss = (
            settings.alignment_weight * parts["alignment"]
            + settings.bridged_weight * parts["bridged"]
            + settings.reconstruction_weight * parts["reconstruction"]
        )
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

    def _contrast(self, image: Tensor, text: Tensor, positives: Tensor, group: ProcessGroup | None) -> Tensor:
        logits = _cosine(image, text) / self.settings.temperature
        return multi_positive_nce(logits, positives, directions="sum", group=group)

    def _hidden(self, pixels: Tensor | None, features: Tensor | None, *, cls_only: bool = False) -> Tensor:
        """The last layer's tokens (B, 1 + N, C), or CLS alone (B, 1, C)."""
        if (pixels is None) == (features is None):
            raise ValueError("BrgSA takes volumes either as pixels or as cached features")
        if self.trunk is None and features is None:
            hidden: Tensor = self.vision(pixels, cls_only=cls_only)
            return hidden
        tokens = self.vision(pixels) if features is None else features.to(self.bank.rows.dtype)
        return tokens if self.trunk is None else self.trunk(tokens, cls_only=cls_only)

    def _score(self, image: Tensor, text: Tensor) -> Tensor:
        pairs = _PAIRS[self.settings.pairing]
        images = {side: self.bank(image) if side else image for side in {pair[0] for pair in pairs}}
        texts = {side: self.bank(text) if side else text for side in {pair[1] for pair in pairs}}
        cosines = [_cosine(images[from_bank], texts[other]) for from_bank, other in pairs]
        return torch.stack(cosines).mean(dim=0) / self.settings.temperature


def random_crop(volumes: Tensor, size: tuple[int, int, int]) -> Tensor:
    """A box of ``size`` (z, y, x) of each volume (B, 1, Z, Y, X), at a place drawn for each alone.

    Raises ValueError for a box that is larger than the volumes.
    """
    room = [have - want for have, want in zip(volumes.shape[2:], size, strict=True)]
    if min(room) < 0:
        raise ValueError(f"model.crop={list(size)} is larger than the volumes {list(volumes.shape[2:])}")
    starts = torch.stack([torch.randint(each + 1, (len(volumes),)) for each in room], dim=1).tolist()
    boxes = [
        volume[:, z : z + size[0], y : y + size[1], x : x + size[2]]
        for volume, (z, y, x) in zip(volumes, starts, strict=True)
    ]
    return torch.stack(boxes)


def _distance(rows: Tensor, others: Tensor, group: ProcessGroup | None) -> Tensor:
    """Mean squared difference over the rows of all processes, gradient on both sides (spec, section 5)."""
    count = sum_over_processes(torch.tensor(rows.numel(), device=rows.device), group)
    return shared_value((wide(rows) - wide(others)).square().sum() / count, group)


def _cosine(rows: Tensor, columns: Tensor) -> Tensor:
    with as_given(rows):
        return _unit(rows) @ _unit(columns).T


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(wide(rows), dim=-1, eps=1e-12)


def _given(pixels: Tensor | None) -> Tensor:
    if pixels is None:
        raise ValueError("this needs the volumes themselves: set vision.cache_features=false")
    return pixels


def _build(config: Config) -> BrgSA:
    settings = validate(BrgSASettings, config.model, where="model")
    if settings.crop is not None and config.vision.cache_features:
        raise ConfigError("model.crop needs vision.cache_features=false: cached features are of whole volumes")
    return BrgSA(build_vision(config.vision, config.data), build_text(config.text), settings)


register("brgsa", System(BrgSASettings, _build, inputs=("volume",)))
