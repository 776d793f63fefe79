"""What a checkpoint consists of: each process lists its own files, with sizes and checksums, after they are stored.

A checkpoint is whole when the list of every process is there. So a kill or an outage in the middle of an upload
leaves something that is seen to be no checkpoint, and a damaged file is found before anything is loaded from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from rayzero.config import nearest
from rayzero.storage import file_sha256
from rayzero.training.errors import TrainingError

PREFIX = "checkpoint-"
SCORE = "checkpoint_score"
"""The reported figure by which Ray Train decides which checkpoints are the best."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint: its size and the SHA-256 of its content."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What process ``rank`` of ``world_size`` stored of a checkpoint.

    ``loop`` is the loop's own state; ``metrics`` are the figures that were reported with it.
    """

    rank: int
    world_size: int
    zero_stage: int
    step: int
    metrics: dict[str, float]
    loop: dict[str, Any]
    files: dict[str, StoredFile] = field(default_factory=dict)

    @staticmethod
    def name(rank: int) -> str:
        """The file's name."""
        return f"manifest-{rank:05d}.json"

    def dump(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self), indent=1, allow_nan=False).encode()

    @classmethod
    def parse(cls, content: bytes) -> Manifest:
        """Read what ``dump`` wrote. Raises ValueError for anything else."""
        try:
            values = json.loads(content)
            files = {name: StoredFile(**entry) for name, entry in values.pop("files").items()}
            return cls(**values, files=files)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a manifest: {error}") from None


@dataclass(frozen=True)
class Stored:
    """A whole checkpoint: where it is, and the manifests of its processes in the order of ranks."""

    name: str
    path: str
    manifests: tuple[Manifest, ...]

    @property
    def step(self) -> int:
        """Optimizer steps behind it."""
        return self.manifests[0].step

    @property
    def score(self) -> float | None:
        """How good the weights are on the validation split, the higher the better; None where not validated."""
        return self.manifests[0].metrics.get(SCORE)


def describe(folder: Path) -> dict[str, StoredFile]:
    """All files below ``folder`` by relative name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): StoredFile(path.stat().st_size, file_sha256(path)) for path in paths}


def problem_with(path: Path, expected: StoredFile) -> str | None:
    """Why the file is not what was stored, or None."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != expected.bytes:
        return f"{path.name} has {size} bytes instead of {expected.bytes}"
    return None if file_sha256(path) == expected.sha256 else f"{path.name} fails its checksum"


def read_stored(fs: AbstractFileSystem, path: str) -> Stored | None:
    """The checkpoint in folder ``path``, or None while it is not whole."""
    try:
        first = Manifest.parse(fs.cat_file(f"{path}/{Manifest.name(0)}"))
        others = [Manifest.parse(fs.cat_file(f"{path}/{Manifest.name(r)}")) for r in range(1, first.world_size)]
    except (FileNotFoundError, ValueError):
        return None
    return Stored(path.rsplit("/", 1)[-1], path, (first, *others))


def list_stored(fs: AbstractFileSystem, root: str) -> list[Stored]:
    """The whole checkpoints of the run folder ``root``, oldest first."""
    fs.invalidate_cache()
    folders = sorted(path for path in fs.ls(root, detail=False) if path.rsplit("/", 1)[-1].startswith(PREFIX))
    return [stored for stored in (read_stored(fs, folder) for folder in folders) if stored is not None]


def choose(stored: Sequence[Stored], which: str) -> Stored:
    """The ``best`` checkpoint by validation (the newest where none was validated), the ``newest``, or one by name.

    Raises TrainingError for a name that there is not.
    """
    if which == "newest":
        return stored[-1]
    if which == "best":
        scored = [(one.score, position) for position, one in enumerate(stored) if one.score is not None]
        return stored[max(scored)[1]] if scored else stored[-1]
    names = [one.name for one in stored]
    if which not in names:
        raise TrainingError(f"no checkpoint {which!r}: {nearest(which, ['best', 'newest', *names])}")
    return stored[names.index(which)]
