"""Manifests: which checkpoints are whole, which is best, and what damage is found."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from rayzero.training import manifest
from rayzero.training.errors import TrainingError
from rayzero.training.manifest import SCORE, Manifest, Stored, StoredFile


def stored(step: int, score: float | None) -> Stored:
    name = f"checkpoint-{step:08d}"
    return Stored(name, name, (Manifest(0, 1, 1, step, {} if score is None else {SCORE: score}, {}),))


def test_best_is_by_score_and_newest_where_nothing_was_validated() -> None:
    run = [stored(1, None), stored(2, 0.7), stored(3, 0.9), stored(4, 0.9), stored(5, 0.8), stored(6, None)]
    assert manifest.choose(run, "best").step == 4  # the later of equals
    assert manifest.choose(run, "newest").step == 6
    assert manifest.choose(run, "checkpoint-00000002").step == 2
    assert manifest.choose([stored(1, None), stored(2, None)], "best").step == 2
    assert manifest.choose([stored(1, -2.0), stored(2, -1.5), stored(3, -1.9)], "best").step == 2
    with pytest.raises(TrainingError, match="no checkpoint 'newst': did you mean 'newest'"):
        manifest.choose(run, "newst")


def test_a_checkpoint_is_whole_when_every_process_has_listed_its_files(tmp_path: Path) -> None:
    fs = fsspec.filesystem("file")
    folder = tmp_path / "checkpoint-00000003"
    (folder / "deepspeed").mkdir(parents=True)
    (folder / "deepspeed" / "weights.pt").write_bytes(b"weights")
    files = manifest.describe(folder)
    assert files == {"deepspeed/weights.pt": StoredFile(7, files["deepspeed/weights.pt"].sha256)}
    written = [Manifest(rank, 2, 1, 3, {SCORE: 0.5}, {"step": 3}, files) for rank in range(2)]
    (folder / Manifest.name(0)).write_bytes(written[0].dump())
    assert manifest.list_stored(fs, str(tmp_path)) == []
    (folder / Manifest.name(1)).write_bytes(written[1].dump()[:-9])
    assert manifest.list_stored(fs, str(tmp_path)) == []
    (folder / Manifest.name(1)).write_bytes(written[1].dump())
    (found,) = manifest.list_stored(fs, str(tmp_path))
    assert found.manifests == tuple(written)
    assert (found.name, found.step, found.score) == ("checkpoint-00000003", 3, 0.5)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"weights", None), (b"weight", "has 6 bytes instead of 7"), (b"Weights", "fails its checksum")],
)
def test_damage_is_named(tmp_path: Path, content: bytes, said: str | None) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    expected = manifest.describe(tmp_path)["weights.pt"]
    path.write_bytes(content)
    problem = manifest.problem_with(path, expected)
    assert problem == (None if said is None else f"weights.pt {said}")
    path.unlink()
    assert manifest.problem_with(path, expected) == "weights.pt is missing"
