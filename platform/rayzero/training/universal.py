"""A checkpoint of one layout (ZeRO stage, number of processes) loaded into another.

DeepSpeed's converter undoes the sharding: a folder per parameter with its weights and Adam moments, whole. What its
loaders still expect differs between ZeRO stages, so ``convert`` brings the result to one form that all of them read;
stage 0, which the converter does not know, is read and written here.
"""

from __future__ import annotations

import contextlib
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint import ds_to_universal
from torch import Tensor, nn

_MOMENTS = ("exp_avg", "exp_avg_sq")


def convert(source: Path, target: Path, model: nn.Module, *, zero_stage: int, step: int) -> None:
    """Write the DeepSpeed checkpoint ``source`` of ``zero_stage`` to ``target`` without its sharding.

    ``model`` is the run's model before an engine has taken its parameters apart; ``step`` is how many optimizer steps
    the checkpoint has seen.
    """
    target.mkdir(parents=True, exist_ok=True)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if zero_stage == 0:
        _split(_load(source / "mp_rank_00_model_states.pt"), trained, target / "zero")
    else:
        options = Namespace(
            input_folder=str(source),
            output_folder=str(target),
            # In this process: workers forked from one that runs threads may hang.
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(options)
    for name, parameter in trained.items():
        for key in ("fp32", *_MOMENTS):
            path = target / "zero" / name / f"{key}.pt"
            held = _load(path)
            tensor = held["param"] if isinstance(held, dict) else held
            torch.save({"param": tensor.reshape(parameter.shape)}, path)
        torch.save(torch.tensor(float(step)), target / "zero" / name / "step.pt")
    # Groups without settings: learning rates and decay are those of the run that loads.
    groups: list[dict[str, Any]] = [{} for _ in trained]
    steps = {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": groups}
    shared = {"ds_version": deepspeed.__version__, "param_groups": groups, "optimizer_state_dict": steps}
    torch.save(shared, target / "zero" / "optimizer_state.pt")
    model_states = next(iter(sorted(source.glob("*mp_rank_00_model_states.pt"))))
    names = {name for name, _ in model.named_buffers()}
    buffers = {name: value for name, value in _load(model_states)["module"].items() if name in names}
    about = {
        "module": buffers,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "global_steps": step,
        "skipped_steps": 0,
        "lr_scheduler": None,
        "ds_version": deepspeed.__version__,
    }
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        torch.save(about, target / name)


def load(engine: deepspeed.DeepSpeedEngine, folder: Path, tag: str) -> None:
    """Load what ``convert`` wrote to ``folder/tag``. Every process calls it."""
    if engine.zero_optimization_stage() == 0:
        _load_plain(engine, folder / tag / "zero")
    else:
        engine._config.load_universal_checkpoint = True
        try:
            engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False)
        finally:
            engine._config.load_universal_checkpoint = False
        # At stage 3 its loader gives all groups the same tensor as their count of steps, and each then adds to it.
        for state in engine.optimizer.optimizer.state.values():
            state["step"] = state["step"].clone()
    buffers = _load(folder / tag / "mp_rank_00_model_states.pt")["module"]
    engine.module.load_state_dict(buffers, strict=False)


def _load_plain(engine: deepspeed.DeepSpeedEngine, folder: Path) -> None:
    """Into a stage-0 engine, whose optimizer is a plain one."""
    optimizer = engine.optimizer
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        with torch.no_grad():
            parameter.copy_(_load(folder / name / "fp32.pt")["param"])
        state: dict[str, Tensor] = {
            key: _load(folder / name / f"{key}.pt")["param"].to(parameter.device) for key in _MOMENTS
        }
        optimizer.state[parameter] = {"step": _load(folder / name / "step.pt"), **state}


def _split(states: dict[str, Any], trained: dict[str, nn.Parameter], folder: Path) -> None:
    """A stage-0 checkpoint as a folder per parameter. Its optimizer counts parameters in the order of its groups."""
    optimizer = states["optimizer"]["state"]
    for index, name in enumerate(states["optimizer_names"]):
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        torch.save({"param": states["module"][name].float()}, path / "fp32.pt")
        for key in _MOMENTS:
            # A parameter that no gradient has reached yet has no moments.
            moment = optimizer.get(index, {}).get(key, torch.zeros_like(trained[name], device="cpu"))
            torch.save({"param": moment.detach()}, path / f"{key}.pt")


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)
