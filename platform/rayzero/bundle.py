"""A bundle: an exported model as a folder that evaluation and serving load.

``model.safetensors`` (every weight), ``config.yaml`` (the run's settings), ``encoders/`` (what rebuilds the
towers, and the tokenizer, with no hub), ``card.json`` (system, data, metrics, calibration, commit) and
``checksums.json`` (SHA-256 of each file, verified before anything is read). No pickle is ever loaded.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from scipy.special import expit

from rayzero.alignment import registry
from rayzero.alignment.base import AlignmentModel, ImageFeatures, PretrainingModel, TextFeatures
from rayzero.config import Config, dump_yaml, load_config, parse_config
from rayzero.storage import file_sha256, local_copy, open_url, write_whole
from rayzero.studies.examples import Array, FindStudy, prepare_views, study_views
from rayzero.studies.preprocess import Geometry, prepare
from rayzero.studies.study import Image, Study
from rayzero.studies.volume_preprocess import VolumeGeometry, prepare_volume

FORMAT_VERSION = 1
# Every bundle has these, and no bundle is read whose list leaves one unchecked.
_ALWAYS = {"model.safetensors", "config.yaml", "card.json"}
_SUMS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])

AnyGeometry = Geometry | VolumeGeometry
"""How a radiograph or a volume was laid on the encoder's input."""


class BundleError(RuntimeError):
    """A bundle is missing, damaged or of another format; the message names the file and the remedy."""


@dataclass(frozen=True)
class Calibration:
    """Platt scaling fitted on validation studies: probability = sigmoid(scale * logit + bias).

    ``replicates`` are pairs of a scale and a bias fitted on validation patients drawn anew, with replacement; empty
    where they were not kept, or the patients were too few to draw from.
    """

    scale: float = 1.0
    bias: float = 0.0
    replicates: tuple[tuple[float, float], ...] = ()

    def probability(self, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Probabilities of ``logits``, of any shape."""
        return np.asarray(expit(self.scale * np.asarray(logits, dtype=np.float64) + self.bias))

    def interval(self, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
        """The 95 % intervals (..., 2) of the probabilities of ``logits`` (...), or None without replicates.

        How far off the curve from logit to probability may be because validation had no more patients. One curve
        serves every finding: that a single finding lies off it, or that an image is unlike all of them, is not in it.
        """
        if not self.replicates:
            return None
        scales, biases = np.array(self.replicates, dtype=np.float64).T
        given = np.asarray(logits, dtype=np.float64)
        low, high = np.quantile(np.multiply.outer(given, scales) + biases, (0.025, 0.975), axis=-1)
        own = self.scale * given + self.bias
        return np.asarray(expit(np.stack([np.minimum(low, own), np.maximum(high, own)], axis=-1)))


@dataclass(frozen=True)
class Phrased:
    """Prompts in all their phrasings: the flat list of sentences, and where each prompt's own begin (T,)."""

    sentences: list[str]
    starts: np.ndarray[Any, np.dtype[np.int64]]

    def mean(self, logits: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits of the sentences (B, S) as logits of the prompts (B, T)."""
        counts = np.diff(self.starts, append=len(self.sentences))
        return (np.add.reduceat(logits, self.starts, axis=1) / counts).astype(np.float32)


@dataclass
class Bundle:
    """A loaded model with what it needs to answer: preprocessing, calibration, and the card about it.

    ``checksum`` is the SHA-256 of every file of it, card included; empty for a model that was not loaded from files.
    """

    model: AlignmentModel
    config: Config
    card: dict[str, Any]
    checksum: str = ""

    @property
    def calibration(self) -> Calibration:
        """Parameters that turn a logit into a probability."""
        told = self.card.get("calibration", {})
        replicates = tuple((scale, bias) for scale, bias in told.get("replicates", ()))
        return Calibration(told.get("scale", 1.0), told.get("bias", 0.0), replicates)

    @property
    def map_threshold(self) -> float:
        """Map logit above which a pixel counts as part of a finding, chosen on validation studies."""
        return float(self.card.get("map_threshold", 0.0))

    def prepare(self, image: Image) -> tuple[Array, AnyGeometry]:
        """``image`` as the encoder's input, and the geometry that maps results back to it.

        A radiograph becomes (1, R, R) in [0, 1], a volume (1, Z, Y, X) in [-1, 1]. Raises ValueError for one where
        the model reads the other.
        """
        if self.config.data.input == "volume":
            return prepare_volume(image, self.config.data)
        return prepare(image, self.config.data, self.config.vision.resolution)

    def prepare_study(self, study: Study, frontal: Image, find: FindStudy) -> tuple[Array, list[bool], Geometry]:
        """A study as the encoder's input (V, 1, R, R), which of its views there are, and the frontal's geometry.

        ``find`` gives the prior study. For a model with data.input=study.
        """
        data, resolution = self.config.data, self.config.vision.resolution
        pixels, present = prepare_views(study_views(study, frontal, data, find), data, resolution)
        return pixels, present, prepare(frontal, data, resolution)[1]

    @torch.no_grad()
    def encode_images(
        self, pixels: Sequence[np.ndarray[Any, Any]], present: Sequence[Sequence[bool]] | None = None
    ) -> ImageFeatures:
        """Encode B prepared images, or B prepared studies with their ``present`` views."""
        batch = torch.from_numpy(np.stack(pixels)).to(self.model.device)
        views = None if present is None else torch.tensor(present, device=self.model.device)
        return self.model.encode_image(batch, present=views)

    def encode_prompts(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode T prompts, used as they are. Raises ValueError for a blank prompt or an empty list."""
        return self.model.encode_prompts(list(prompts))

    @torch.no_grad()
    def score(self, image: ImageFeatures, text: TextFeatures) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Zero-shot logits (B, T)."""
        return self.model.score(image, text).float().cpu().numpy()

    @torch.no_grad()
    def similarity_map(self, image: ImageFeatures, text: TextFeatures) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Map logits on the patch grid (B, T, *grid); ``Geometry.restore`` brings one to the image's own size."""
        return self.model.similarity_map(image, text).float().cpu().numpy()

    def phrase(self, prompts: Sequence[str]) -> Phrased:
        """Every way in which the model is asked ``prompts`` (see ``EvaluationConfig.phrasings``)."""
        groups = [self.config.evaluation.phrasings(prompt) for prompt in prompts]
        starts = np.cumsum([0, *map(len, groups)])[:-1]
        return Phrased([sentence for group in groups for sentence in group], starts)

    def probability(self, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Calibrated probabilities of ``logits``, of any shape."""
        return self.calibration.probability(logits)


def save_bundle(url: str, model: PretrainingModel, config: Config, card: dict[str, Any]) -> str:
    """Write a bundle to ``url`` (a folder, local or on any fsspec file system) and return it.

    A bundle that was there is replaced, files that only it had included. Raises BundleError for a folder that holds
    something else.
    """
    fs, root = open_url(url)
    old = _checksums(fs, root, url) if fs.exists(f"{root}/checksums.json") else {}
    if not old and fs.exists(root) and fs.find(root):
        raise BundleError(f"{url} holds files and is no bundle; give another folder")
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
        save_file(weights, local / "model.safetensors", metadata={"format": "pt"})
        (local / "config.yaml").write_text(dump_yaml(config))
        model.vision.save_definition(local / "encoders" / "vision")
        model.text.save_definition(local / "encoders" / "text")
        (local / "card.json").write_text(
            json.dumps({"format": FORMAT_VERSION, "system": config.system, **card}, indent=2, sort_keys=True)
        )
        files = sorted(path for path in local.rglob("*") if path.is_file())
        sums = {str(path.relative_to(local)): file_sha256(path) for path in files}
        (local / "checksums.json").write_text(json.dumps(sums, indent=2))
        fs.makedirs(root, exist_ok=True)
        fs.put(f"{folder}/", f"{root}/", recursive=True)
    for name in sorted(old.keys() - sums.keys()):
        if fs.exists(f"{root}/{name}"):
            fs.rm_file(f"{root}/{name}")
    return url


def update_card(url: str, values: dict[str, Any]) -> None:
    """Lay ``values`` over the card of the bundle at ``url``, checksum included. Raises BundleError without one."""
    fs, root = open_url(url)
    sums = _checksums(fs, root, url)
    card = {**json.loads(fs.cat_file(f"{root}/card.json")), **values}
    text = json.dumps(card, indent=2, sort_keys=True).encode()
    sums = {**sums, "card.json": hashlib.sha256(text).hexdigest()}
    write_whole(fs, f"{root}/card.json", text)
    write_whole(fs, f"{root}/checksums.json", json.dumps(sums, indent=2).encode())


def read_bundle_card(url: str) -> tuple[Config, dict[str, Any], str]:
    """Settings, card and checksum of the bundle at ``url``, not its weights. Raises BundleError as ``load_bundle``."""
    fs, root = open_url(url)
    sums = _checksums(fs, root, url)
    texts = {name: fs.cat_file(f"{root}/{name}") for name in ("config.yaml", "card.json")}
    for name, text in texts.items():
        if hashlib.sha256(text).hexdigest() != sums[name]:
            raise BundleError(f"{url}: {name} does not match its checksum; export or download the bundle again")
    return parse_config(texts["config.yaml"].decode()), json.loads(texts["card.json"]), _digest(sums)


def fingerprint(url: str) -> str:
    """SHA-256 of what decides the logits of the bundle at ``url``: weights, settings and encoders, not its card, which
    has the calibration of probabilities and the threshold of maps. Raises BundleError without one."""
    fs, root = open_url(url)
    return _digest({name: value for name, value in _checksums(fs, root, url).items() if name != "card.json"})


def load_bundle(url: str, device: torch.device | str = "cpu") -> Bundle:
    """Load a bundle for inference. Raises BundleError when a file is absent, altered or of another format."""
    fs, root = open_url(url)
    _checksums(fs, root, url)  # before a copy is made of what is no bundle
    with local_copy(fs, root) as folder:
        checksum = _digest(_verify(folder, url))
        card = json.loads((folder / "card.json").read_text())
        if card.get("format") != FORMAT_VERSION:
            raise BundleError(f"{url}: bundle format {card.get('format')!r}, this version reads {FORMAT_VERSION}")
        config = load_config(folder / "config.yaml")
        vision = config.vision.model_copy(update={"encoder": str(folder / "encoders" / "vision")})
        text = config.text.model_copy(update={"encoder": str(folder / "encoders" / "text")})
        model = registry.build_zero_shot(config.model_copy(update={"vision": vision, "text": text}))
        model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval().requires_grad_(False)
    return Bundle(model=model.to(device), config=config, card=card, checksum=checksum)


def _checksums(fs: fsspec.AbstractFileSystem, root: str, url: str) -> dict[str, str]:
    if not fs.exists(f"{root}/checksums.json"):
        raise BundleError(f"{url}: no bundle here (checksums.json is absent); write one with jobs.export")
    try:
        sums = _SUMS.validate_json(fs.cat_file(f"{root}/checksums.json"))
    except ValidationError as error:
        raise BundleError(f"{url}: checksums.json is damaged ({error.errors()[0]['msg']}); export it again") from None
    unlisted = sorted(_ALWAYS - sums.keys())
    outside = sorted(name for name in sums if Path(name).is_absolute() or ".." in Path(name).parts)
    if unlisted or outside:
        problem = f"does not list {', '.join(unlisted)}" if unlisted else f"lists {outside[0]!r}, outside the bundle"
        raise BundleError(f"{url}: checksums.json {problem}; export the bundle again")
    return sums


def _digest(sums: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _verify(folder: Path, url: str) -> dict[str, str]:
    sums = _checksums(fsspec.filesystem("file"), str(folder), url)
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{url}: {name} is missing; export the bundle again")
        if file_sha256(path) != expected:
            raise BundleError(f"{url}: {name} does not match its checksum; export or download the bundle again")
    return sums
