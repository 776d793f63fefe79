"""Masked record modelling: the image half and the report half, and the views of studies that both start from.

MRM pretrains with these two tasks alone; ALTA keeps them beside its alignment (ALTA spec, sections 2, 3 and 5).

What is hidden depends on torch's seed and on an example's own text, not on which process or row the example is in: with
one seed, W processes hide what one process would.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from rayzero.alignment.base import Batch
from rayzero.config import Settings
from rayzero.encoders.masked_vit import MaskedViT
from rayzero.encoders.text import TextEncoder, TokenBatch
from rayzero.encoders.transformer import Block, sincos_positions
from rayzero.ops.collectives import shared_value, sum_over_processes
from rayzero.ops.precision import wide

VIEWS = 4
"""Current frontal, current lateral, prior frontal, prior lateral."""


class RecordSettings(Settings):
    """The towers and the masks, ``model.*`` of an MRM or ALTA run; defaults are the published sizes."""

    width: int = Field(768, ge=8, description="Width of the image encoder")
    depth: int = Field(12, ge=1, le=48)
    heads: int = Field(12, ge=1)
    decoder_width: int = Field(768, ge=8)
    decoder_depth: int = Field(4, ge=1, le=16)
    decoder_heads: int = Field(6, ge=1)
    mask_ratio: float = Field(0.75, gt=0.0, lt=1.0, description="Share of an image's patches that is hidden")
    word_mask_ratio: float = Field(0.5, gt=0.0, lt=1.0, description="Share of a report's words that is hidden")


@dataclass(frozen=True)
class Views:
    """The M views that there are of B studies; a view that a study has not takes no part anywhere.

    ``patches`` (M, N, C), ``study`` (M,) the row of each view's study, ``slot`` (M,) its place among the
    ``slots`` views that a study may have here, which every chunk of a batch agrees on.
    """

    patches: Tensor
    study: Tensor
    slot: Tensor
    studies: int
    slots: int

    def mean(self, rows: Tensor) -> Tensor:
        """``rows`` (M, C) averaged over the views of each study (B, C)."""
        views = torch.bincount(self.study, minlength=self.studies).unsqueeze(1)
        return rows.new_zeros(self.studies, rows.shape[1]).index_add(0, self.study, rows) / views

    def side_by_side(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``rows`` (M, n, C) of each study one after the other (B, V n, C), and where there are any (B, V n)."""
        count = rows.shape[1]
        out = rows.new_zeros(self.studies, self.slots, count, rows.shape[2])
        there = torch.zeros(self.studies, self.slots, count, dtype=torch.bool, device=rows.device)
        there[self.study, self.slot] = True
        out = out.index_put((self.study, self.slot), rows)
        return out.flatten(1, 2), there.flatten(1, 2)


def read_views(
    vision: MaskedViT, pixels: Tensor | None, features: Tensor | None, present: Tensor | None
) -> tuple[Views, Tensor | None]:
    """The views of studies (B, V, ...) or single radiographs (B, ...), and their pixels (M, 1, R, R) where given.

    Raises ValueError when the shapes are neither, or when a study has no current frontal radiograph.
    """
    given = pixels if features is None else features
    if given is None:
        raise ValueError("an image is needed: give pixels, or features that the frozen stem made")
    single = 4 if features is None else 3
    if given.ndim == single and present is None:
        study = torch.arange(len(given), device=given.device)
        patches = vision.embed(pixels) if features is None else vision.embed(features=features)
        return Views(patches, study, torch.zeros_like(study), len(given), 1), pixels
    if given.ndim != single + 1 or present is None or present.shape != given.shape[:2] or given.shape[1] > VIEWS:
        raise ValueError(
            f"images {tuple(given.shape)} with present {None if present is None else tuple(present.shape)} are neither "
            f"radiographs (B, ...) nor studies (B, V, ...) of at most {VIEWS} views with present (B, V)"
        )
    if not bool(present[:, 0].all()):
        row = int((~present[:, 0]).nonzero()[0])
        raise ValueError(
            f"study {row} of the batch has no current frontal radiograph (present={present[row].tolist()})"
        )
    study, slot = present.nonzero(as_tuple=True)
    seen = None if pixels is None else pixels[study, slot]
    patches = vision.embed(seen) if features is None else vision.embed(features=features[study, slot])
    return Views(patches, study, slot, len(given), given.shape[1]), seen


def hide_patches(patches: Tensor, noise: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """The patches (M, n, C) that stay of ``patches`` (M, N, C), those of the smallest ``noise`` (M, N).

    Also the order (M, N) of all patches, the n that stay first.
    """
    order = noise.argsort(dim=1)
    stay = order[:, : max(1, int(patches.shape[1] * (1.0 - ratio)))]
    return patches.gather(1, stay.unsqueeze(-1).expand(-1, -1, patches.shape[2])), order


def read_hidden(vision: MaskedViT, batch: Batch, ratio: float, system: str) -> tuple[Views, Tensor, Tensor, Tensor]:
    """The views of ``batch``, their patches that stay, the order of all patches, and the pixels (M, 1, R, R).

    Raises ValueError when ``batch`` has no pixels or not one text per image.
    """
    check_one_text_per_image(batch)
    if batch.pixels is None:
        raise ValueError(f"{system} restores pixels in training: give them beside cached features")
    views, pixels = read_views(vision, batch.pixels, batch.features, batch.present)
    assert pixels is not None
    count = views.patches.shape[1]
    noise = noise_of(batch, VIEWS * count).unflatten(1, (VIEWS, count))[views.study, views.slot]
    patches, order = hide_patches(views.patches, noise, ratio)
    return views, patches, order, pixels


def hide_words(tokens: TokenBatch, noise: Tensor, text: TextEncoder, ratio: float) -> tuple[TokenBatch, Tensor]:
    """The report with words under ``noise`` < ``ratio`` replaced by the mask token, and which those are (T, L).

    Always the mask token; special tokens and padding stay (section 2).
    """
    special = torch.tensor(text.tokenizer.all_special_ids, device=tokens.ids.device)
    hidden = (noise < ratio) & tokens.mask.bool() & ~torch.isin(tokens.ids, special)
    return TokenBatch(tokens.ids.masked_fill(hidden, text.tokenizer.mask_token_id), tokens.mask), hidden


def noise_of(batch: Batch, count: int) -> Tensor:
    """Uniform numbers (B, ``count``) by torch's seed and each example's text."""
    draw = int(torch.randint(2**62, ()))
    rows = [
        torch.rand(count, generator=torch.Generator().manual_seed(draw ^ name), dtype=torch.float64)
        for name in batch.text_ids.tolist()
    ]
    return torch.stack(rows).to(batch.text_ids.device)


class ImageDecoder(nn.Module):
    """Restores hidden patches from those that stayed, at the resolution of the images and not of the encoder.

    Linear map, mask tokens and position codes in, a few pre-norm blocks, the pixels of each patch out.
    """

    def __init__(self, vision: MaskedViT, settings: RecordSettings, resolution: int) -> None:
        super().__init__()
        width = settings.decoder_width
        self.side, self.channels = resolution // vision.grid[0], vision.channels
        self.embed = nn.Linear(vision.width, width)
        self.mask = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.register_buffer("codes", sincos_positions(vision.grid, width), persistent=False)
        self.blocks = nn.ModuleList([Block(width, settings.decoder_heads, None) for _ in range(settings.decoder_depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, self.side**2 * self.channels)

    def forward(self, hidden: Tensor, order: Tensor, pixels: Tensor) -> Tensor:
        """Mean squared error (M,) over the hidden patches of each view.

        ``hidden`` (M, 1 + n, C) is the encoder's output, ``order`` (M, N) names its patches, ``pixels`` (M, 1, R, R).
        Targets are normalised patch by patch (section 5).
        """
        seen = self.embed(hidden)
        stayed, count = seen.shape[1] - 1, order.shape[1]
        patches = torch.cat([seen[:, 1:], self.mask.to(seen.dtype).expand(len(seen), count - stayed, -1)], dim=1)
        patches = patches + self.get_buffer("codes").to(seen.dtype)[order]
        x = torch.cat([seen[:, :1], patches], dim=1)
        for block in self.blocks:
            x = block(x)
        predicted = self.predict(self.norm(x[:, 1 + stayed :])).unflatten(-1, (self.channels, -1))
        target = F.pixel_unshuffle(pixels, self.side).flatten(2).transpose(1, 2)
        target = target.gather(1, order[:, stayed:].unsqueeze(-1).expand(-1, -1, target.shape[2]))
        spread, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (spread + 1e-6).sqrt()
        errors: Tensor = (predicted - target.unsqueeze(-2)).square()
        return errors.mean(dim=(1, 2, 3))


class ReportDecoder(nn.Module):
    """Restores hidden words of a report from the others and from its images.

    The images' mean global vector, brought to the text's width, is laid on every embedded token; BERT's masked-language
    head, whose output matrix is the word embeddings, names the words.
    """

    def __init__(self, vision_width: int, text: TextEncoder) -> None:
        super().__init__()
        self.condition = nn.Linear(vision_width, text.width)
        self.transform = nn.Linear(text.width, text.width)
        self.norm = nn.LayerNorm(text.width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(len(word_embeddings(text))))

    def forward(self, words: Tensor, tokens: TokenBatch, hidden: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy (T,) over the ``hidden`` (T, L) words of each text, and their number (T,).

        ``words`` (T, L, C) comes from the text with those words masked, ``tokens`` is the text itself, ``embeddings``
        (vocabulary, C) the encoder's.
        """
        known = self.norm(F.gelu(self.transform(words[hidden])))
        logits = F.linear(known, embeddings, self.bias)
        losses = F.cross_entropy(wide(logits), tokens.ids[hidden], reduction="none")
        text = hidden.nonzero()[:, 0]
        return losses.new_zeros(len(words)).index_add(0, text, losses), hidden.sum(dim=1)


def word_embeddings(text: TextEncoder) -> Tensor:
    """The input embedding matrix (vocabulary, C) of ``text``."""
    matrix: Tensor = text.network.get_input_embeddings().weight
    return matrix


def check_one_text_per_image(batch: Batch) -> None:
    """Raises ValueError when ``batch`` was not drawn with one text per image."""
    if batch.text_ids.shape[0] != len(batch) or not len(batch):
        raise ValueError(
            f"{len(batch)} images and {batch.text_ids.shape[0]} texts: masked record modelling hides words of one text "
            "per image; set data.texts=report (or caption, or sentence)"
        )


def masked_losses(represented: dict[str, Tensor], group: ProcessGroup | None) -> dict[str, Tensor]:
    """``mim``, the mean over the group's images, and ``mlm``, the mean over its hidden words.

    From the rows ``mim``, ``mlm`` (summed over the words of a text) and ``hidden_words`` of ``represented``.
    """
    mim, mlm, words = (represented[name] for name in ("mim", "mlm", "hidden_words"))
    counts = sum_over_processes(torch.stack([words.sum(), words.new_tensor(len(mim))]), group)
    return {
        "mim": shared_value(mim.sum() / counts[1], group),
        # A batch of one-word texts may hide none.
        "mlm": shared_value(mlm.sum() / counts[0].clamp(min=1), group),
    }
