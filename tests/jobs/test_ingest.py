"""The command: one clear message and exit code 2 for what cannot be done; a summary for what was."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import ingest as job
from rayzero.studies.ingest import Ingested
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
    code = job.main(["--corpus", corpus, "--root", str(root), "--lake", str(tmp_path / "lake")])
    error = capsys.readouterr().err
    assert code == 2
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "lake").exists()


def test_limits_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        job.main(["--corpus", "folder", "--root", "x", "--lake", "y", "--limit", "0"])
    assert caught.value.code == 2
    assert "1 or more" in capsys.readouterr().err


def test_summary_names_what_was_refused(tmp_path: Path) -> None:
    refused = [Quarantined(study_id=f"s{n}", file="a", stage="open", reason=f"reason {n % 12}") for n in range(24)]
    result = Ingested(write_lake(str(tmp_path), [], refused), tuple(refused), 1.0)
    text = job.summary(result)
    assert "quarantined  24" in text
    assert "2  open: reason 0" in text
    assert "and 2 more reasons" in text
    assert text.splitlines()[-1].startswith("speed")
