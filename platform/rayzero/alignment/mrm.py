"""MRM, masked record modelling (ICLR 2023): what ALTA's image encoder is pretrained with.

Three quarters of an image's patches are hidden; a light decoder restores them at twice the resolution that the encoder
sees. Half of the report's words are hidden; a text transformer restores them from the others and from the image's
global vector, which is how the report teaches the image encoder (ALTA spec, sections 2, 3 and 6). The two losses are
added.

A small run puts the transformer on a frozen convolutional stem (see ``rayzero.encoders.masked_vit``, and there what
leaks), whose cached features make a CPU enough; restoration is then at the stem's own resolution.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from rayzero.alignment.base import Batch, PretrainingModel
from rayzero.alignment.masked_records import (
    ImageDecoder,
    RecordSettings,
    ReportDecoder,
    hide_words,
    masked_losses,
    noise_of,
    read_hidden,
    word_embeddings,
)
from rayzero.alignment.registry import System, register
from rayzero.config import Config, validate
from rayzero.encoders.masked_vit import MaskedViT, build_masked_vit
from rayzero.encoders.text import TextEncoder, build_text


class MRM(PretrainingModel):
    """Masked record modelling over single radiographs, or over studies, whose views are restored one by one."""

    vision: MaskedViT

    def __init__(self, vision: MaskedViT, text: TextEncoder, decoder: ImageDecoder, settings: RecordSettings) -> None:
        super().__init__()
        self.vision, self.text, self.decoder, self.settings = vision, text, decoder, settings
        self.report = ReportDecoder(vision.width, text)

    def represent(self, batch: Batch) -> dict[str, Tensor]:
        """Rows of each study: ``mim`` (B,), ``mlm`` summed over its hidden words (B,), and their number."""
        views, patches, order, pixels = read_hidden(
            self.vision, batch, self.settings.mask_ratio, "masked record modelling"
        )
        seen = self.vision.encode(patches)
        mim = views.mean(self.decoder(seen, order, pixels).unsqueeze(1)).squeeze(1)
        masked, hidden = hide_words(
            batch.texts,
            noise_of(batch, self.text.max_tokens)[:, : batch.texts.ids.shape[1]],
            self.text,
            self.settings.word_mask_ratio,
        )
        _, words = self.text(masked, self.report.condition(views.mean(seen[:, 0])))
        mlm, number = self.report(words, batch.texts, hidden, word_embeddings(self.text))
        return {"mim": mim, "mlm": mlm, "hidden_words": number}

    def objective(
        self, represented: dict[str, Tensor], batch: Batch, group: ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        """The mean over the group's images plus the mean over its hidden words."""
        parts = masked_losses(represented, group)
        return {"loss": parts["mim"] + parts["mlm"], **{name: part.detach() for name, part in parts.items()}}


def build_towers(config: Config, settings: RecordSettings) -> tuple[MaskedViT, ImageDecoder]:
    """The image encoder and decoder that ``config`` describes, which MRM trains and ALTA adapts."""
    vision = build_masked_vit(config.vision, width=settings.width, depth=settings.depth, heads=settings.heads)
    return vision, ImageDecoder(vision, settings, config.vision.resolution)


def _build(config: Config) -> MRM:
    settings = validate(RecordSettings, config.model, where="model")
    vision, decoder = build_towers(config, settings)
    return MRM(vision, build_text(config.text), decoder, settings)


register("mrm", System(RecordSettings, _build, inputs=("radiograph", "study"), needs_pixels=True, answers=False))
