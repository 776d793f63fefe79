"""Spaces: the shipped ones are valid, and wrong ones say what is wrong before a trial starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayzero.config import ConfigError
from tune.report import SweepResult, Trial, write_report
from tune.space import load_space
from tune.sweep import prepare

SPACES = Path(__file__).parents[2] / "tune" / "spaces"


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_spaces_are_valid_at_both_ends(path: Path) -> None:
    sweep = prepare(load_space(path), path.stem)
    for parameter in sweep.space.parameters.values():
        parameter.distribution()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {model.temprature: {type: float, low: 0.1, high: 0.2}}", "unknown setting 'model.temprature'"),
        ("parameters: {model.temperature: {type: float, low: 0.1, high: 9}}", "model.temperature=9"),
        ("parameters: {training.lr: {type: float, low: 0.2, high: 0.1}}", "are no range"),
        ("parameters: {training.lr: {type: float, low: 0, high: 0.1, log: true}}", "are no range for log=true"),
        ("parameters: {training.lr: {type: flaot, low: 0, high: 0.1}}", "flaot"),
        ("parameters: {training.steps: {type: int, low: 9, high: 3}}", "are no range"),
        ("parameters: {}", "at least 1 item"),
        ("parameters: {a: {type: int, low: 1, high: 2}}\ntrails: 3", "unknown setting 'space.yaml.trails'"),
    ],
)
def test_wrong_spaces_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"preset: quickstart\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        prepare(load_space(path), "wrong")
    assert message in str(caught.value)


def test_a_missing_file_and_remote_storage_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sweep file"):
        load_space(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="local or shared disk"):
        prepare(load_space(SPACES / "quickstart.yaml"), "remote", ["storage=s3://bucket/runs"])


def test_the_report_ranks_and_draws(tmp_path: Path) -> None:
    trials = tuple(
        Trial({"model.temperature": 0.02 * 2**i, "training.schedule": "cosine"}, 0.9 - 0.1 * i, 10, 3.0)
        for i in range(4)
    )
    write_report(tmp_path, SweepResult("t", "validation/macro_auroc", "max", trials, failed=1))
    page = (tmp_path / "report.html").read_text()
    assert page.index("0.9000") < page.index("0.6000")
    assert page.count("data:image/png") == 2
    assert "1 trials failed" in page
