"""ALTA (arXiv 2506.08990): alignment through adapting masked vision models.

The image encoder and decoder of an MRM run and a pretrained BERT are frozen; small adapters, the norms and the heads
train, on a global and a local contrastive loss beside the two masked losses of MRM:

    L = L_global + L_local + L_MIM + L_MLM                                            (ALTA spec, section 5)

An image is a study: the current frontal with whatever lateral and prior views there are, in training and at inference
alike. The views do not attend to each other; their global vectors are averaged over those that there are, their
patches stand side by side in the local loss.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from rayzero.alignment.adapters import adapt_text, adapt_vision
from rayzero.alignment.base import AlignmentModel, Batch, ImageFeatures, TextFeatures
from rayzero.alignment.masked_records import (
    ImageDecoder,
    RecordSettings,
    ReportDecoder,
    Views,
    hide_words,
    masked_losses,
    noise_of,
    read_hidden,
    read_views,
    word_embeddings,
)
from rayzero.alignment.mrm import build_towers
from rayzero.alignment.pretrained import load_towers
from rayzero.alignment.registry import System, register
from rayzero.alignment.texts import distinct_texts
from rayzero.config import Config, ConfigError, validate
from rayzero.encoders.masked_vit import MaskedViT, is_definition
from rayzero.encoders.text import TextEncoder, TokenBatch, build_text
from rayzero.ops.collectives import largest_of_processes
from rayzero.ops.contrastive import info_nce
from rayzero.ops.local_alignment import local_alignment
from rayzero.ops.precision import as_given, wide

_LARGEST_SCALE = 100.0


class AltaSettings(RecordSettings):
    """``model.*`` of an ALTA run; the sizes of the image towers are those of its MRM run."""

    mrm: str = Field("", description="Folder or URL of the MRM bundle whose image encoder and decoder are adapted")
    adapter_ratio: float = Field(0.25, gt=0.0, le=1.0, description="Width of an adapter over the width of its tower")
    projection: int = Field(128, ge=1, description="Width of the shared space")
    scale: float = Field(1 / 0.07, ge=1.0, le=_LARGEST_SCALE, description="Initial multiplier of all four similarities")


class Alta(AlignmentModel):
    """ALTA over the image towers of an MRM run and any BERT-like text encoder.

    Trainable are exactly: adapters, LayerNorms, CLS, view and time embeddings, the four heads, the four scales, the
    decoder's two linear maps and its mask token, and the report decoder with the map that conditions it on the images.
    ``adapted_layers`` restricts the text side to its last layers; None adapts all.
    """

    vision: MaskedViT

    def __init__(
        self,
        vision: MaskedViT,
        text: TextEncoder,
        decoder: ImageDecoder,
        settings: AltaSettings,
        adapted_layers: int | None = None,
    ) -> None:
        super().__init__()
        self.vision, self.text, self.decoder, self.settings = vision, text, decoder, settings
        self.requires_grad_(False)
        adapt_vision(vision, settings.adapter_ratio)
        adapt_text(text, settings.adapter_ratio, adapted_layers)
        for part in (decoder.embed, decoder.predict, *_norms(decoder)):
            part.requires_grad_(True)
        decoder.mask.requires_grad_(True)
        # Rows: frontal and lateral; current and prior.
        self.view = nn.Parameter(torch.zeros(2, vision.width))
        self.time = nn.Parameter(torch.zeros(2, vision.width))
        self.report = ReportDecoder(vision.width, text)
        self.image_head, self.patch_head = (_head(vision.width, settings.projection, 1e-6) for _ in range(2))
        self.text_head, self.word_head = (_head(text.width, settings.projection, 1e-12) for _ in range(2))
        # As published, words start where the text does.
        self.word_head.load_state_dict(self.text_head.state_dict())
        # Shape [1], not scalar: DeepSpeed broadcasts parameters as byte views, which 0-d tensors have not.
        for name in ("log_scale", "log_word_scale", "log_pool_scale", "log_score_scale"):
            self.register_parameter(name, nn.Parameter(torch.full((1,), math.log(settings.scale))))

    def scale(self, name: str) -> Tensor:
        """The multiplier ``name`` (1,), kept in [1, 100] here because ZeRO undoes a clamp of the parameter itself."""
        return self.get_parameter(name).clamp(0.0, math.log(_LARGEST_SCALE)).exp()

    def encode_image(
        self, pixels: Tensor | None = None, *, features: Tensor | None = None, present: Tensor | None = None
    ) -> ImageFeatures:
        """Unit global vectors (B, D) of studies or single radiographs; local features and grid of the current frontal.

        Nothing is hidden. Raises ValueError for shapes that are neither, or a study without a current frontal.
        """
        views, _ = read_views(self.vision, pixels, features, present)
        hidden = self._encode(views, views.patches)
        pooled = _unit(self.image_head(views.mean(hidden[:, 0])))
        return ImageFeatures(pooled, self.patch_head(hidden[views.slot == 0, 1:]), self.vision.grid)

    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """Unit global vectors (T, D) from CLS, and local features (T, L, D) of all tokens after it."""
        _, words = self.text(tokens)
        return self._project_words(words, tokens)

    def score(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Logits (B, T): cosine of the global vectors times the learned scale."""
        return self._logits(image.pooled, text.pooled)

    def similarity_map(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Patch logits (B, T, h, w) on the current frontal: mean cosine of a patch and the words, times the scale."""
        words = _unit(text.tokens) * text.mask.unsqueeze(-1)
        mean = words.sum(dim=1) / text.mask.sum(dim=1, keepdim=True).clamp(min=1)
        with as_given(mean):
            scores = torch.einsum("td,bnd->btn", mean, _unit(image.tokens)) * self.scale("log_scale")
        return scores.reshape(*scores.shape[:2], *image.grid)

    def represent(self, batch: Batch) -> dict[str, Tensor]:
        """Rows of each study and of its text; what the masked losses need of them is two numbers each."""
        views, patches, order, pixels = read_hidden(self.vision, batch, self.settings.mask_ratio, "alta")
        seen = self._encode(views, patches)
        pooled = views.mean(seen[:, 0])
        local, there = views.side_by_side(self.patch_head(seen[:, 1:]))
        # Of a study, the current frontal alone is restored.
        frontal = views.slot == 0
        mim = self.decoder(seen[frontal], order[frontal], pixels[frontal])
        texts, mlm, hidden_words = self._read_reports(batch, pooled)
        return {
            "image": _unit(self.image_head(pooled)),
            "patches": local,
            "patch_mask": there,
            "text": texts.pooled,
            "words": texts.tokens,
            "word_mask": texts.mask,
            "mim": mim,
            "mlm": mlm,
            "hidden_words": hidden_words,
        }

    def objective(
        self, represented: dict[str, Tensor], batch: Batch, group: ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        """The four losses, summed; each process scores its own images against the texts of all."""
        texts, positives = distinct_texts(_pack(represented, group), batch, group)
        text, words, word_mask = _unpack(texts, represented["text"].shape[1])
        logits = self._logits(represented["image"], text)
        scores = local_alignment(
            represented["patches"],
            words,
            word_mask,
            *(self.scale(name) for name in ("log_word_scale", "log_pool_scale", "log_score_scale")),
            patch_mask=represented["patch_mask"],
        )
        parts = {
            "global": info_nce(logits, positives, group=group),
            "local": info_nce(scores, positives, group=group),
            **masked_losses(represented, group),
        }
        named = {name: part.detach() for name, part in parts.items()}
        return {"loss": torch.stack(list(parts.values())).sum(), **named}

    def _logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosines (B, T) of unit rows times the learned scale."""
        with as_given(images):
            return self.scale("log_scale") * images @ wide(texts).T

    def _encode(self, views: Views, patches: Tensor) -> Tensor:
        """Tokens (M, 1 + n, C) of ``patches`` (M, n, C), told apart by view and time."""
        lateral, prior = views.slot % 2, views.slot // 2
        return self.vision.encode(patches, self.view[lateral] + self.time[prior])

    def _read_reports(self, batch: Batch, images: Tensor) -> tuple[TextFeatures, Tensor, Tensor]:
        """The reports' features, and the masked losses of their hidden words given ``images`` (B, C).

        Both readings, clean and masked, are one batch of the text encoder.
        """
        tokens = batch.texts
        noise = noise_of(batch, self.text.max_tokens)[:, : tokens.ids.shape[1]]
        masked, hidden = hide_words(tokens, noise, self.text, self.settings.word_mask_ratio)
        condition = self.report.condition(images)
        both = TokenBatch(torch.cat([tokens.ids, masked.ids]), tokens.mask.repeat(2, 1))
        _, words = self.text(both, torch.cat([torch.zeros_like(condition), condition]))
        clean, restored = words.chunk(2)
        mlm, number = self.report(restored, tokens, hidden, word_embeddings(self.text))
        return self._project_words(clean, tokens), mlm, number

    def _project_words(self, words: Tensor, tokens: TokenBatch) -> TextFeatures:
        mask = tokens.mask.bool()
        return TextFeatures(_unit(self.text_head(words[:, 0])), self.word_head(words[:, 1:]), mask[:, 1:])


def _head(width: int, projection: int, eps: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, projection), nn.GELU(), nn.LayerNorm(projection, eps=eps), nn.Linear(projection, projection)
    )


def _norms(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.LayerNorm)]


def _pack(represented: dict[str, Tensor], group: ProcessGroup | None) -> Tensor:
    """A text's global vector, mask and words as one row (U, D + L + L D), L the longest of the group: one gather."""
    text, words, mask = (represented[name] for name in ("text", "words", "word_mask"))
    longest = largest_of_processes(words.shape[1], words.device, group)
    short = longest - words.shape[1]
    words, mask = F.pad(words, (0, 0, 0, short)), F.pad(mask, (0, short))
    return torch.cat([text.to(words.dtype), mask.to(words.dtype), words.flatten(1)], dim=1)


def _unpack(rows: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Global vectors (T, D), words (T, L, D) and their mask (T, L) of packed ``rows``."""
    longest = (rows.shape[1] - width) // (width + 1)
    text, mask, words = rows.split([width, longest, longest * width], dim=1)
    return text, words.unflatten(1, (longest, width)), mask > 0.5


def _unit(rows: Tensor) -> Tensor:
    """Rows of unit length, in fp32 at least."""
    return F.normalize(wide(rows), dim=-1, eps=1e-12)


def _build(config: Config) -> Alta:
    settings = validate(AltaSettings, config.model, where="model")
    vision, decoder = build_towers(config, settings)
    # A bundle of ALTA brings all weights itself.
    if not is_definition(config.vision.encoder):
        if not settings.mrm:
            raise ConfigError("model.mrm is empty: ALTA adapts the image towers of an MRM run; give its bundle")
        load_towers(settings.mrm, vision, decoder)
    text = build_text(config.text)
    return Alta(vision, text, decoder, settings, config.text.trainable_layers)


register("alta", System(AltaSettings, _build, inputs=("study", "radiograph"), needs_pixels=True, folders=("mrm",)))
