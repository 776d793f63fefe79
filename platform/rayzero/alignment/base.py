"""The contract that every alignment system implements: all that training, evaluation and serving know.

``encode_*`` carries everything that depends on one side alone, so that a server caches prompts, a trainer
caches the features of a frozen encoder, and evaluation encodes each image and each prompt once. A loss is split
the same way: ``represent`` is what each example alone determines, ``objective`` compares examples with each other.

Letters in shapes: B images, T texts, N patch tokens, L word tokens, D width of the shared space, V views of a study.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from rayzero.encoders.text import TextEncoder, TokenBatch
from rayzero.encoders.vision import VisionEncoder


@dataclass(frozen=True)
class ImageFeatures:
    """What a system keeps of images: ``pooled`` (B, D), ``tokens`` (B, N, D), patch ``grid`` (h, w[, d])."""

    pooled: Tensor
    tokens: Tensor
    grid: tuple[int, ...]

    def rows(self, index: slice | Tensor) -> ImageFeatures:
        """The features of the images that ``index`` selects."""
        return ImageFeatures(self.pooled[index], self.tokens[index], self.grid)


@dataclass(frozen=True)
class TextFeatures:
    """What a system keeps of texts: ``pooled`` (T, D), ``tokens`` (T, L, D), ``mask`` (T, L) true on words."""

    pooled: Tensor
    tokens: Tensor
    mask: Tensor

    def rows(self, index: slice | Tensor) -> TextFeatures:
        """The features of the texts that ``index`` selects."""
        return TextFeatures(self.pooled[index], self.tokens[index], self.mask[index])


@dataclass(frozen=True)
class Batch:
    """One process's share of a step: B images, and the U texts that their studies say.

    ``pixels`` and ``features`` hold the images; cached features come without pixels unless the system asks for both.

    =========== ==================== ======================================================
    input       pixels               features, the cached output of the frozen encoder
    =========== ==================== ======================================================
    radiograph  (B, 1, H, W)         (B, N, C)
    study       (B, V, 1, H, W)      (B, V, N, C)
    volume      (B, 1, Z, Y, X)      (B, N, C)
    =========== ==================== ======================================================

    Radiographs are in [0, 1], volumes in [-1, 1]. ``present`` (B, V) tells which views of a study there are, in the
    order current frontal, current lateral, prior frontal, prior lateral; what is absent holds zeros.

    ``text_ids`` (U,) int64 names each text, equal for equal text on every process. ``positives`` (B, U) is true
    where the study of the image says the text: sibling views of one study share theirs, and a text that two studies
    say is positive for both (RadZero spec, defect 13). Under ``data.texts=sentences`` the U texts are the distinct
    sentences of all studies; otherwise text i was drawn from the study of image i, U = B, and equal texts are
    positives of each other. ``said`` (B, K) names all that the study of an image says where one sentence of it was
    drawn, padded with -1: a sentence drawn from another study, in whichever process, is a positive of all that say it.
    """

    texts: TokenBatch
    text_ids: Tensor
    positives: Tensor
    pixels: Tensor | None = None
    features: Tensor | None = None
    present: Tensor | None = None
    said: Tensor | None = None

    def __len__(self) -> int:
        return self.positives.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on ``device``; ``non_blocking`` does not wait for the copy of pinned memory to a GPU."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, which a GPU reads by itself. Needs a GPU."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> Batch:
        parts: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            parts[field.name] = None if value is None else change(value)
        return Batch(**parts)

    def chunks(self, count: int) -> list[Batch]:
        """The batch in at most ``count`` runs of consecutive images, each with its run of consecutive texts.

        With one text per image the two stay together. ``positives`` of a chunk covers its own texts alone: a chunk
        is for ``represent``, never for ``objective``. Raises ValueError when there are fewer images or texts than
        ``count``.
        """
        images, texts = len(self), self.text_ids.shape[0]
        if not 1 <= count <= min(images, texts):
            raise ValueError(f"{images} images and {texts} texts cannot be cut into {count} chunks")
        return [
            self._part(
                slice(images * index // count, images * (index + 1) // count),
                slice(texts * index // count, texts * (index + 1) // count),
            )
            for index in range(count)
        ]

    def _part(self, images: slice, texts: slice) -> Batch:
        return Batch(
            texts=TokenBatch(self.texts.ids[texts], self.texts.mask[texts]),
            text_ids=self.text_ids[texts],
            positives=self.positives[images, texts],
            pixels=None if self.pixels is None else self.pixels[images],
            features=None if self.features is None else self.features[images],
            present=None if self.present is None else self.present[images],
            said=None if self.said is None else self.said[images],
        )


class PretrainingModel(nn.Module, ABC):
    """A vision and a text encoder with an objective that trains them."""

    vision: VisionEncoder
    text: TextEncoder

    @abstractmethod
    def represent(self, batch: Batch) -> dict[str, Tensor]:
        """What each image or text of ``batch`` alone determines: tensors whose rows are images or texts.

        Chunks of a batch give chunks of these rows, which is what gradient caching stands on. A loss that needs one
        example only (masked modelling) is a row here.
        """

    @abstractmethod
    def objective(
        self, represented: dict[str, Tensor], batch: Batch, group: ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        """The objective over the global batch of ``group``: ``loss`` to minimise and named parts to log.

        Every process gets the value of the whole batch; averaging gradients over the group's processes gives
        the gradient that one process holding the whole batch would compute.
        """

    def loss(self, batch: Batch, group: ProcessGroup | None = None) -> dict[str, Tensor]:
        """``objective`` of what ``represent`` gives."""
        return self.objective(self.represent(batch), batch, group)

    def forward(
        self,
        batch: Batch,
        group: ProcessGroup | None = None,
        *,
        stage: Literal["loss", "represent", "objective"] = "loss",
        represented: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """``loss``, or one of the two halves of it: a training engine hooks ``forward`` alone."""
        if stage == "represent":
            return self.represent(batch)
        if stage == "objective":
            assert represented is not None
            return self.objective(represented, batch, group)
        return self.loss(batch, group)

    def train(self, mode: bool = True) -> Self:
        """Training mode for the trainable parts; a frozen encoder keeps its inference statistics."""
        super().train(mode)
        for encoder in (self.vision, self.text):
            if not any(parameter.requires_grad for parameter in encoder.parameters()):
                encoder.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


class AlignmentModel(PretrainingModel):
    """A vision-language alignment system."""

    @abstractmethod
    def encode_image(
        self, pixels: Tensor | None = None, *, features: Tensor | None = None, present: Tensor | None = None
    ) -> ImageFeatures:
        """Encode images as ``pixels`` or as ``features`` that the frozen encoder gave, in the shapes of ``Batch``.

        A system that reads studies takes single radiographs, too, as studies whose other views are absent.
        """

    @abstractmethod
    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """Encode T tokenised texts."""

    @abstractmethod
    def score(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Zero-shot logits (B, T): the higher, the likelier that the text is true of the image."""

    @abstractmethod
    def similarity_map(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Logits on the patch grid (B, T, *grid): where in the image the text is true."""

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> TextFeatures:
        """Tokenise and encode ``prompts``. Raises ValueError for an empty list or a blank prompt."""
        return self.encode_text(self.text.tokenize(prompts).to(self.device))
