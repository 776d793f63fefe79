"""The image towers of a finished MRM run, read from its bundle."""

from __future__ import annotations

from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from rayzero.alignment.masked_records import ImageDecoder
from rayzero.config import ConfigError, parse_config
from rayzero.encoders.masked_vit import MaskedViT
from rayzero.storage import open_url


def load_towers(bundle: str, vision: MaskedViT, decoder: ImageDecoder) -> None:
    """Fill ``vision`` and ``decoder`` from the MRM bundle at the folder or URL ``bundle``.

    Raises ConfigError when there is no MRM bundle, or when its towers have other sizes.
    """
    fs, root = open_url(bundle)
    if not fs.exists(f"{root}/model.safetensors"):
        raise ConfigError(f"model.mrm={bundle!r} is no bundle; train one with --preset mrm, then jobs.export")
    system = parse_config(fs.cat_file(f"{root}/config.yaml").decode()).system
    if system != "mrm":
        raise ConfigError(f"model.mrm={bundle!r} is a bundle of {system}; give one of mrm")
    weights = load_tensors(fs.cat_file(f"{root}/model.safetensors"))
    towers: dict[str, nn.Module] = {"vision": vision, "decoder": decoder}
    for name, tower in towers.items():
        theirs = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        _fill(tower, theirs, name, bundle)


def _fill(tower: nn.Module, weights: dict[str, Tensor], name: str, bundle: str) -> None:
    own = {key: tuple(value.shape) for key, value in tower.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in weights.items()}
    if own != theirs:
        key = min(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
        raise ConfigError(
            f"model.mrm={bundle!r}: {name}.{key} is {theirs.get(key, 'absent')} there and "
            f"{own.get(key, 'absent')} here; give vision.* and model.* the values of the MRM run"
        )
    tower.load_state_dict(weights)
