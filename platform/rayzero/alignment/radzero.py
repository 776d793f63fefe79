"""RadZero (arXiv 2504.07416): similarity-based cross-attention and multi-positive contrastive alignment.

A frozen vision encoder, a few trainable transformer blocks on its tokens, a fine-tuned sentence encoder, and a
LayerNorm that both sides share. Each minimal sentence of a report is scored against each image by VL-CABS:

    q = unit(LN(text)),  u_k = unit(LN(token_k)),  s_k = <q, u_k> / tau
    score = cos(q, sum_k softmax(s)_k u_k) / tau,  map = s on the patch grid        (sections 3.2 and 3.3)

The defaults are the released code's. The paper's text differs: its weighted sum is over the tokens before they are
made unit (``values: raw``), and it adds the two directions of the loss (``loss_reduction: sum``). Its ablation (a)
attends by dot products over sqrt(D) to raw tokens (``similarity: dot``, ``values: raw``).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from rayzero.alignment.base import AlignmentModel, Batch, ImageFeatures, TextFeatures
from rayzero.alignment.registry import System, register
from rayzero.alignment.texts import distinct_texts
from rayzero.config import Config, Settings, validate
from rayzero.encoders.text import TextEncoder, TokenBatch, build_text
from rayzero.encoders.transformer import Adapter, Block
from rayzero.encoders.vision import VisionEncoder, build_vision
from rayzero.ops.contrastive import multi_positive_nce
from rayzero.ops.precision import as_given, wide
from rayzero.ops.similarity_attention import vl_cabs


class RadZeroSettings(Settings):
    """``model.*`` of a RadZero run."""

    blocks: int = Field(2, ge=0, le=24, description="Trainable transformer blocks on the frozen encoder")
    heads: int = Field(12, ge=1)
    layer_scale: float = Field(
        1.0, gt=0.0, description="Initial LayerScale of the blocks; near 0 they start as identity"
    )
    temperature: float = Field(0.07, ge=0.01, le=1.0, description="Initial temperature, divides cosines")
    learn_temperature: bool = True
    balanced: bool = Field(False, description="Each distinct sentence weighs the same; false is as published")
    similarity: Literal["cosine", "dot"] = Field("cosine", description="What attention compares text and tokens by")
    values: Literal["unit", "raw"] = Field("unit", description="Tokens that attention sums: made unit (code), or not")
    loss_reduction: Literal["mean", "sum"] = Field("mean", description="Of the two directions: code mean, paper sum")


class RadZero(AlignmentModel):
    """RadZero over any vision and text encoder.

    The shared space has the text encoder's width, as published; a vision encoder of another width is brought to
    it by one linear map with fixed position codes, because such encoders (CNNs) carry none.
    """

    def __init__(self, vision: VisionEncoder, text: TextEncoder, settings: RadZeroSettings) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.balanced, self.loss_reduction = settings.balanced, settings.loss_reduction
        self.similarity, self.values = settings.similarity, settings.values
        width = text.width
        self.adapter = None if vision.width == width else Adapter(vision, width)
        self.blocks = nn.Sequential(
            *[Block(width, settings.heads, settings.layer_scale) for _ in range(settings.blocks)]
        )
        self.norm = nn.LayerNorm(width)
        # Shape [1], not scalar: DeepSpeed broadcasts parameters as byte views, which 0-d tensors have not.
        self.log_temperature = nn.Parameter(
            torch.full((1,), math.log(settings.temperature)), requires_grad=settings.learn_temperature
        )

    @property
    def temperature(self) -> Tensor:
        """The temperature tau (1,), kept in [0.01, 1] here because ZeRO undoes a clamp of the parameter itself."""
        return self.log_temperature.clamp(math.log(0.01), 0.0).exp()

    def encode_image(
        self, pixels: Tensor | None = None, *, features: Tensor | None = None, present: Tensor | None = None
    ) -> ImageFeatures:
        """Tokens (B, N, D), unit unless lengths matter; ``pooled`` (B, D) is their mean, CLS included if there is one.

        The first ``num_prefix`` tokens (CLS) take part in the attention but not in the map; they are kept in
        ``tokens`` in front, and ``grid`` covers the rest.
        """
        if (pixels is None) == (features is None) or present is not None:
            raise ValueError("encode_image takes single radiographs, either pixels or cached features")
        hidden = self.vision(pixels) if features is None else features.to(self.norm.weight.dtype)
        if self.adapter is not None:
            hidden = self.adapter(hidden)
        tokens = self._rows(self.norm(self.blocks(hidden)), keep_length=self.values == "raw")
        return ImageFeatures(pooled=tokens.mean(dim=1), tokens=tokens, grid=self.vision.grid)

    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """Sentence vectors (T, D), unit unless compared by dot product, and the word vectors behind them."""
        pooled, words = self.text(tokens)
        query = self._rows(self.norm(pooled), keep_length=False)
        return TextFeatures(pooled=query, tokens=words, mask=tokens.mask.bool())

    def score(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Logits (B, T): VL-CABS cosine over the temperature."""
        return self._cosine(text.pooled, image.tokens) / self.temperature

    def similarity_map(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Patch logits (B, T, h, w): the scores that attention takes its softmax of."""
        patches = image.tokens[:, image.tokens.shape[1] - math.prod(image.grid) :]
        if self.similarity == "cosine" and self.values == "raw":
            patches = _unit(patches)
        with as_given(patches):
            scores = torch.einsum("td,bnd->btn", wide(text.pooled), wide(patches))
        scores = scores / self._attention_temperature(patches)
        return scores.reshape(*scores.shape[:2], *image.grid)

    def _rows(self, rows: Tensor, *, keep_length: bool) -> Tensor:
        """Rows as ``score`` takes them: unit wherever only their direction matters."""
        return wide(rows) if keep_length or self.similarity == "dot" else _unit(rows)

    def _attention_temperature(self, tokens: Tensor) -> Tensor | float:
        return self.temperature if self.similarity == "cosine" else math.sqrt(tokens.shape[-1])

    def _cosine(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Cosine (B, T) of each text and its weighted sum, for rows of ``encode_text`` and ``encode_image``."""
        temperature = self._attention_temperature(tokens)
        # The op sums value_scale_k * token_k: lengths for raw values of unit rows, their inverse for the opposite.
        match self.similarity, self.values:
            case "cosine", "raw":
                lengths = torch.linalg.vector_norm(tokens, dim=-1).clamp(min=1e-12)
                return vl_cabs(queries, tokens / lengths.unsqueeze(-1), temperature, value_scale=lengths)
            case "dot", "unit":
                lengths = torch.linalg.vector_norm(tokens, dim=-1).clamp(min=1e-12)
                return vl_cabs(queries, tokens, temperature, value_scale=1 / lengths, similarity="dot")
            case _:
                return vl_cabs(queries, tokens, temperature, similarity=self.similarity)

    def represent(self, batch: Batch) -> dict[str, Tensor]:
        """Image tokens (B, N, D) and sentence vectors (U, D), as ``score`` takes them."""
        image = self.encode_image(batch.pixels, features=batch.features, present=batch.present)
        return {"tokens": image.tokens, "queries": self.encode_text(batch.texts).pooled}

    def objective(
        self, represented: dict[str, Tensor], batch: Batch, group: ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        """Multi-positive NCE over the group's images and distinct sentences (section 3.4).

        Images stay where they are: only the sentence vectors, a thousandth of the bytes, are gathered.
        """
        queries, positives = distinct_texts(represented["queries"], batch, group)
        logits = self._cosine(queries, represented["tokens"]) / self.temperature
        loss = multi_positive_nce(
            logits, positives, balanced=self.balanced, directions=self.loss_reduction, group=group
        )
        return {"loss": loss, "temperature": self.temperature.detach().squeeze()}


def _unit(rows: Tensor) -> Tensor:
    """Rows of unit length, in fp32: half-precision cosines divided by 0.07 would be too coarse.

    On a GPU that computes in bfloat16 they are rounded to it: ``vl_cabs`` multiplies them exactly there, by its fused
    kernels, and sums in fp32. Autocast must be asked: the norm before gives fp32 whatever the rest is in.
    """
    unit = F.normalize(wide(rows), dim=-1, eps=1e-12)
    casts = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
    return unit.to(torch.bfloat16) if rows.is_cuda and (casts or rows.dtype == torch.bfloat16) else unit


def _build(config: Config) -> RadZero:
    settings = validate(RadZeroSettings, config.model, where="model")
    return RadZero(build_vision(config.vision), build_text(config.text), settings)


register("radzero", System(RadZeroSettings, _build))
