"""The run's storage: patience with a store that is away."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from rayzero.training import run_storage
from rayzero.training.run_storage import patiently, train_storage


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_storage, "_FIRST_PAUSE", 0.01)


def test_a_failing_action_is_repeated_until_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def action() -> str:
        calls.append(1)
        if len(calls) < 4:
            raise ConnectionError("the store hung up")
        return "done"

    assert patiently(action, "saving") == "done"
    assert len(calls) == 4
    assert capsys.readouterr().out.count("saving: the store hung up; trying again in") == 3


@pytest.mark.parametrize(("error", "calls"), [(FileNotFoundError, 1), (PermissionError, 1), (ConnectionError, 3)])
def test_what_is_absent_or_forbidden_stays_so(error: type[OSError], calls: int) -> None:
    made = []

    def action() -> None:
        made.append(1)
        raise error

    with pytest.raises(error):
        patiently(action, "saving", seconds=0.05)
    assert len(made) == calls


def test_ray_train_gets_a_file_system_that_travels_between_processes(tmp_path: Path) -> None:
    filesystem, root = train_storage(str(tmp_path))
    other = pickle.loads(pickle.dumps(filesystem))
    assert other == filesystem
    filesystem.create_dir(f"{root}/run", recursive=True)
    with filesystem.open_output_stream(f"{root}/run/state.json") as file:
        file.write(b"{}")
    with other.open_input_stream(f"{root}/run/state.json") as file:
        assert file.read() == b"{}"
    assert [other.get_file_info(f"{root}/{name}").type.name for name in ("run", "absent")] == ["Directory", "NotFound"]
    other.delete_dir(f"{root}/run")
    assert not (tmp_path / "run").exists()
