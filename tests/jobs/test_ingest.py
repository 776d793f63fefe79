"""The command: one clear message and exit code 2 for what cannot be done; a summary for what was."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import ingest as job
from jobs.command import main
from rayzero.studies.ingest import Ingested, Progress
from rayzero.studies.lake import Quarantined, write_lake


@pytest.mark.parametrize(
    ("corpus", "make", "words"),
    [
        ("phantm", False, "did you mean 'phantom'"),
        ("folder", False, "does not exist"),
        ("folder", True, "no studies.csv"),
    ],
)
def test_mistakes_end_with_one_line(
    corpus: str, make: bool, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "corpus"
    if make:
        root.mkdir()
    with pytest.raises(SystemExit) as caught:
        main(job.run, ["--corpus", corpus, "--root", str(root), "--lake", str(tmp_path / "lake")])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "lake").exists()


def test_limits_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        job.run(["--corpus", "folder", "--root", "x", "--lake", "y", "--limit", "0"])
    assert caught.value.code == 2
    assert "'0' is not a whole number from 1 up" in capsys.readouterr().err


def test_summary_names_what_was_refused(tmp_path: Path) -> None:
    refused = [Quarantined(study_id=f"s{n}", file="a", stage="open", reason=f"reason {n % 12}") for n in range(24)]
    result = Ingested(write_lake(str(tmp_path), [], refused), tuple(refused), 1.0)
    text = job.summary(result)
    assert "quarantined  24" in text
    assert "2  open: reason 0" in text
    assert "and 2 more reasons" in text
    assert text.splitlines()[-1].startswith("speed")


def test_progress_has_rate_and_time_left_of_this_run_alone() -> None:
    progress = Progress(300, 1500, 600, quarantined=2, seconds=10.0, resumed_studies=100, resumed_images=200)
    line = job.progress_line(progress)
    assert line == "ingest: 300/1,500 studies (20 %), 40 images/s, 2 quarantined, 0:01:00 left"
    assert job.progress_line(Progress(5, 5, 5, quarantined=0, seconds=1.0)).endswith("0 quarantined")
