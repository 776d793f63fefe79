"""Training checkpoints: DeepSpeed's sharded state and the loop's own state, on the run's storage.

A checkpoint is written to this machine's disk and uploaded behind the back of training. These files are DeepSpeed
pickles: they are read back from the run's own folder only. What leaves the run is a bundle (``rayzero.bundle``),
which holds no pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import ray.train
import torch
import torch.distributed as dist
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file

from rayzero.alignment.base import PretrainingModel
from rayzero.storage import make_parent, write_whole
from rayzero.training import average as averages
from rayzero.training import manifest, universal
from rayzero.training.average import Average
from rayzero.training.errors import TrainingError
from rayzero.training.manifest import SCORE, Manifest, Stored
from rayzero.training.progress import Progress
from rayzero.training.run_storage import patiently

_UNSCORED = -sys.float_info.max
"""The score of what was not validated. Ray Train's record is JSON, where not a number comes back as nothing."""
TAG = "deepspeed"


@dataclass
class LoopState:
    """Where the loop stands: everything beside weights and optimizer that a resumed run needs."""

    step: int = 0
    images_seen: int = 0
    stopped: bool = False
    progress: Progress = field(default_factory=Progress)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> LoopState:
        """From ``dataclasses.asdict``."""
        return cls(**{**values, "progress": Progress.parse(values["progress"])})


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from, its files in ``folder`` on this machine; ``resharded`` tells how to load them."""

    stored: Stored
    folder: Path
    resharded: bool

    def load(self, engine: deepspeed.DeepSpeedEngine, average: Average | None = None) -> LoopState:
        """Load it into ``engine`` and say where the loop stands. Every process calls it."""
        groups = [{key: value for key, value in g.items() if key != "params"} for g in engine.optimizer.param_groups]
        if self.resharded:
            universal.load(engine, self.folder, TAG)
        else:
            # Not strict: frozen parameters are left out of checkpoints, the encoder brings them.
            engine.load_checkpoint(str(self.folder), tag=TAG, load_module_strict=False)
        # The settings of the groups are this run's: DeepSpeed's loaders give those of the first to all.
        for group, settings in zip(engine.optimizer.param_groups, groups, strict=True):
            group.update(settings)
        if average is not None:
            average.load(self.folder)
        return LoopState.parse(self.stored.manifests[0].loop)


class Checkpoints:
    """The checkpoints of the run that this worker trains.

    One upload is under way at a time: ``save`` waits for the one before, so that a slow store slows training down
    instead of filling the disk. ``blocked`` counts the seconds for which training stood still.
    """

    def __init__(self, zero_stage: int) -> None:
        self._context = ray.train.get_context()
        storage = self._context.get_storage()
        self._root: str = storage.experiment_fs_path
        self._filesystem = storage.storage_filesystem
        self._fs: AbstractFileSystem = self._filesystem.handler.fs
        self._zero_stage = zero_stage
        self._rank, self._world_size = self._context.get_world_rank(), self._context.get_world_size()
        self._staging = _staging(self._root) / f"rank-{self._rank}"
        self._restored = self._staging / "restored"
        # Of each node: two may share a disk, and both convert.
        self._universal = _staging(self._root) / f"universal-{self._context.get_node_rank()}"
        # Names of damaged checkpoints are not used again: Ray Train has them on its list until it deletes them.
        self._damaged: set[str] = set()
        self._uploaded = threading.Event()
        self._uploaded.set()
        self.blocked = 0.0

    def find(self, model: PretrainingModel) -> Found | None:
        """The newest checkpoint that is whole, on this machine; None at the start of a run.

        Every process calls it, before an engine takes ``model`` apart. What earlier processes left half-done is
        removed. A checkpoint that is damaged is passed over for the one before. Raises TrainingError when there are
        checkpoints and all of them are damaged.
        """
        shutil.rmtree(self._staging, ignore_errors=True)
        names = self._known()
        for name in sorted(names, reverse=True):
            found, problem = self._fetch(name)
            problems = [one for one in self._gather(problem) if one]
            if not problems and found is not None:
                return self._resharded(found, model)
            self._damaged.add(name)
            if self._rank == 0:
                print(f"{name} is damaged ({problems[0]}); going back to the one before", flush=True)
                # Ray Train has it on its list and deletes it in its time; for everybody else it is none any more.
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(f"{self._root}/{name}/{Manifest.name(0)}")
        if names:
            raise TrainingError(f"all checkpoints in {self._root} are damaged; choose another name=... to start anew")
        return None

    def discard(self) -> None:
        """Remove what ``find`` brought to this machine, once it is loaded. Every process calls it."""
        dist.barrier()
        shutil.rmtree(self._restored, ignore_errors=True)
        if self._context.get_local_rank() == 0:
            shutil.rmtree(self._universal, ignore_errors=True)

    def save(
        self,
        engine: deepspeed.DeepSpeedEngine,
        state: LoopState,
        metrics: dict[str, float],
        average: Average | None = None,
    ) -> None:
        """Save on every process and report the checkpoint to Ray Train once it is on the run's storage.

        Returns when the state is on this machine's disk; the upload goes on behind.
        """
        start = time.monotonic()
        self._uploaded.wait()
        self._uploaded.clear()
        name = f"{manifest.PREFIX}{state.step:08d}"
        while name in self._damaged:
            name += "-again"
        folder = self._staging / name
        folder.mkdir(parents=True)
        client = {"optimizer_names": _optimizer_names(engine)} if self._zero_stage == 0 else {}
        engine.save_checkpoint(
            str(folder), tag=TAG, client_state=client, save_latest=False, exclude_frozen_parameters=True
        )
        if average is not None and self._rank == 0:
            average.save(folder)
        # Programs that DeepSpeed puts beside its files: nobody should run code out of a checkpoint.
        for script in folder.rglob("*.py"):
            script.unlink()
        about = Manifest(
            rank=self._rank,
            world_size=self._world_size,
            zero_stage=self._zero_stage,
            step=state.step,
            metrics={key: value for key, value in metrics.items() if math.isfinite(value)},
            loop=asdict(state),
        )

        def upload(local: ray.train.Checkpoint, target: str) -> ray.train.Checkpoint:
            try:
                return self._upload(Path(local.path), target, about)
            finally:
                self._uploaded.set()

        ray.train.report(
            {SCORE: _UNSCORED, **about.metrics},
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=True,
        )
        self.blocked += time.monotonic() - start

    def _upload(self, folder: Path, name: str, about: Manifest) -> ray.train.Checkpoint:
        target = f"{self._root}/{name}"
        files = manifest.describe(folder)
        for path in files:
            patiently(partial(_store, self._fs, folder / path, f"{target}/{path}"), f"saving {name}")
        # Last: what has its manifests is whole.
        content = replace(about, files=files).dump()
        patiently(lambda: write_whole(self._fs, f"{target}/{Manifest.name(self._rank)}", content), f"saving {name}")
        return ray.train.Checkpoint(target, self._filesystem)

    def _known(self) -> list[str]:
        """The names of the checkpoints that Ray Train knows of, after it learnt of those that it should know.

        A crash may come between a checkpoint's last file and its report: what is whole and newer than all that were
        reported is reported now. Everything else is what a crash left of storing or deleting, and is deleted.
        """
        reported = [Path(one.checkpoint.path).name for one in ray.train.get_all_reported_checkpoints()]
        shared: list[list[Stored]] = [[]]
        if self._rank == 0:
            whole = patiently(partial(manifest.list_stored, self._fs, self._root), "looking at the run's storage")
            shared = [[one for one in whole if one.name > max(reported, default="")]]
            self._sweep({*reported, *(one.name for one in shared[0])})
        dist.broadcast_object_list(shared)
        for one in shared[0]:
            ray.train.report(
                {SCORE: _UNSCORED, **one.manifests[0].metrics},
                checkpoint=ray.train.Checkpoint(one.path, self._filesystem),
                checkpoint_dir_name=one.name,
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
            )
        return [*reported, *(one.name for one in shared[0])]

    def _sweep(self, kept: set[str]) -> None:
        """Delete what a crash left: folders of checkpoints other than those in ``kept``."""
        self._fs.invalidate_cache()
        for path in patiently(partial(self._fs.ls, self._root, detail=False), "looking at the run's storage"):
            name = path.rstrip("/").rsplit("/", 1)[-1]
            if name.startswith(manifest.PREFIX) and name not in kept:
                print(f"deleting {name}, which was not finished", flush=True)
                patiently(partial(self._fs.rm, path, recursive=True), f"deleting {name}")

    def _fetch(self, name: str) -> tuple[Found | None, str | None]:
        """The files of a checkpoint that this process needs, verified; or what is wrong with it."""
        path = f"{self._root}/{name}"
        self._fs.invalidate_cache()
        stored = patiently(lambda: manifest.read_stored(self._fs, path), f"reading {name}")
        if stored is None:
            return None, "a manifest is missing or not readable"
        same = len(stored.manifests) == self._world_size and stored.manifests[0].zero_stage == self._zero_stage
        if same:
            needed = {**stored.manifests[0].files, **stored.manifests[self._rank].files}
        else:
            # One process of each machine converts the whole.
            mine = stored.manifests if self._context.get_local_rank() == 0 else ()
            needed = {path: file for one in mine for path, file in one.files.items()}
        folder = Path(path) if isinstance(self._fs, LocalFileSystem) else self._restored
        # Of a damaged checkpoint there may be files that the one before, of another layout, has not.
        shutil.rmtree(self._restored, ignore_errors=True)
        for file, expected in needed.items():
            local = folder / file
            try:
                if not isinstance(self._fs, LocalFileSystem):
                    local.parent.mkdir(parents=True, exist_ok=True)
                    patiently(partial(self._fs.get_file, f"{path}/{file}", str(local)), f"reading {name}")
                problem = manifest.problem_with(local, expected)
            except FileNotFoundError:
                problem = f"{file} is missing"
            if problem:
                return None, problem
        return Found(stored, folder, resharded=not same), None

    def _resharded(self, found: Found, model: PretrainingModel) -> Found:
        """``found`` in a form that this layout reads: converted by one process of each machine where it has another."""
        if not found.resharded:
            return found
        first = found.stored.manifests[0]
        folder = self._universal
        if self._rank == 0:
            print(
                f"{found.stored.name} was saved by {first.world_size} workers at ZeRO stage {first.zero_stage}; "
                f"converting it for {self._world_size} at stage {self._zero_stage}",
                flush=True,
            )
        if self._context.get_local_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            universal.convert(
                found.folder / TAG, folder / TAG, model, zero_stage=first.zero_stage, step=found.stored.step
            )
            if averages.FILE in first.files:
                shutil.copy2(found.folder / averages.FILE, folder / averages.FILE)
        dist.barrier()
        return replace(found, folder=folder)

    def _gather(self, value: str | None) -> list[str | None]:
        gathered: list[str | None] = [None] * self._world_size
        dist.all_gather_object(gathered, value)
        return gathered


def load_weights(model: PretrainingModel, fs: AbstractFileSystem, stored: Stored) -> None:
    """Fill the trained parameters of ``model`` from a checkpoint of any ZeRO stage, in fp32; averaged if it has them.

    Raises TrainingError when a file is damaged, and RuntimeError when the checkpoint lacks a trained parameter or
    holds one that the model has not.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for one in stored.manifests:
            for name, expected in one.files.items():
                local = folder / name
                local.parent.mkdir(parents=True, exist_ok=True)
                patiently(partial(fs.get_file, f"{stored.path}/{name}", str(local)), f"reading {stored.name}")
                if problem := manifest.problem_with(local, expected):
                    raise TrainingError(f"{stored.path} is damaged: {problem}")
        if stored.manifests[0].zero_stage:
            state = get_fp32_state_dict_from_zero_checkpoint(temporary, tag=TAG, exclude_frozen_parameters=True)
        else:
            # Stage 0 has no shards: the module's own state is complete.
            state = torch.load(folder / TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
            state = state["module"]
        if averages.FILE in stored.manifests[0].files:
            # The average is of parameters alone: buffers that training changed are the module's own.
            state = {**state, **load_file(folder / averages.FILE)}
        result = model.load_state_dict(state, strict=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = sorted(trained.intersection(result.missing_keys))
    if missing or result.unexpected_keys:
        raise RuntimeError(
            f"checkpoint {stored.path} does not fit this model: "
            f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}; was the run's config.yaml changed?"
        )


def _staging(root: str) -> Path:
    """Where this machine keeps files of a run's checkpoints on their way; the same after a crash, to be emptied.

    Raises TrainingError when the folder is another user's: what is loaded from it is run.
    """
    folder = Path(tempfile.gettempdir()) / f"rayzero-{os.getuid()}-{hashlib.sha256(root.encode()).hexdigest()[:16]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.getuid() or not stat.S_ISDIR(about.st_mode) or about.st_mode & 0o022:
        raise TrainingError(f"{folder} belongs to another user or is open to others; remove it, or set TMPDIR")
    return folder


def _store(fs: AbstractFileSystem, local: Path, remote: str) -> None:
    make_parent(fs, remote)
    fs.put_file(str(local), remote)


def _optimizer_names(engine: deepspeed.DeepSpeedEngine) -> list[str]:
    """The names of the parameters in the order in which the optimizer counts them."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    return [names[id(parameter)] for group in engine.optimizer.param_groups for parameter in group["params"]]
