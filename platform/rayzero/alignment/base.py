"""The contract that every alignment system implements: all that training, evaluation and serving know.

``encode_*`` carries everything that depends on one side alone, so that a server caches prompts, a trainer
caches the features of a frozen encoder, and evaluation encodes each image and each prompt once.

Letters in shapes: B images, T texts, N patch tokens, L word tokens, D width of the shared space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

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
    """One process's share of a step: B images, and the U distinct sentences that its studies say.

    Exactly one of ``pixels`` (B, 1, H, W) in [0, 1] and ``features`` (B, N, C), the cached output of the frozen
    encoder, is given. ``text_ids`` (U,) int64 names each sentence, equal for equal text on every process.
    ``positives`` (B, U) is true where the study of the image says the sentence: sibling views of one study
    share theirs, and a sentence that two studies say is positive for both (RadZero spec, defect 13).
    """

    texts: TokenBatch
    text_ids: Tensor
    positives: Tensor
    pixels: Tensor | None = None
    features: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return Batch(
            texts=self.texts.to(device),
            text_ids=self.text_ids.to(device),
            positives=self.positives.to(device),
            pixels=None if self.pixels is None else self.pixels.to(device),
            features=None if self.features is None else self.features.to(device),
        )


class AlignmentModel(nn.Module, ABC):
    """A vision-language alignment system."""

    vision: VisionEncoder
    text: TextEncoder

    @abstractmethod
    def encode_image(self, pixels: Tensor | None = None, *, features: Tensor | None = None) -> ImageFeatures:
        """Encode ``pixels`` (B, 1, H, W) in [0, 1], or ``features`` (B, N, C) that the frozen encoder gave."""

    @abstractmethod
    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """Encode T tokenised sentences."""

    @abstractmethod
    def score(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Zero-shot logits (B, T): the higher, the likelier that the text is true of the image."""

    @abstractmethod
    def similarity_map(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Logits on the patch grid (B, T, *grid): where in the image the text is true."""

    @abstractmethod
    def loss(self, batch: Batch, group: ProcessGroup | None = None) -> dict[str, Tensor]:
        """The objective over the global batch of ``group``: ``loss`` to minimise and named parts to log.

        Every process gets the value of the whole batch; averaging gradients over the group's processes gives
        the gradient that one process holding the whole batch would compute.
        """

    def forward(self, batch: Batch, group: ProcessGroup | None = None) -> dict[str, Tensor]:
        """``loss``: a training engine hooks ``forward``."""
        return self.loss(batch, group)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> TextFeatures:
        """Tokenise and encode ``prompts``. Raises ValueError for an empty list or a blank prompt."""
        return self.encode_text(self.text.tokenize(prompts).to(self.device))
