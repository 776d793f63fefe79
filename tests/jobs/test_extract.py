"""The command: rules and a model behind an endpoint, with progress; one clear message for what cannot be done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs import extract as job
from jobs.command import main
from rayzero.studies.lake import open_lake, write_lake
from rayzero.studies.study import Image, Report, Study
from tests.reports.extraction.server import serve

ANSWER = '{"statements": [{"finding": "cardiomegaly", "status": "present", "location": ""}]}'


@pytest.fixture
def lake(tmp_path: Path) -> str:
    image = Image.from_array("s/pa", np.zeros((2, 2), np.uint8), view="frontal", bits=8)
    report = Report(findings="The heart is enlarged. No edema.")
    study = Study(study_id="s", patient_id="p", corpus="test", split="train", images=(image,), report=report)
    return write_lake(str(tmp_path / "lake"), [study]).url


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lake", "nowhere"], "no lake at nowhere"),
        (["--model", "m", "--url", "http://x"], "add --strategy endpoint"),
        (["--strategy", "endpoint"], "needs --model"),
        (["--strategy", "endpoint", "--model", "m"], "needs --url"),
        (["--strategy", "endpoint", "--model", "m", "--url", "http://x", "--timeout", "0"], "--timeout=0.0: "),
        (["--strategy", "vllm", "--model", "m"], "rayzero[vllm]"),
    ],
)
def test_mistakes_end_with_one_line(
    arguments: list[str], words: str, lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(job.run, ["--lake", lake, "--out", str(tmp_path / "out"), *arguments])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_rules_then_a_model_with_a_cache(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    job.run(["--lake", lake, "--out", out])
    printed = capsys.readouterr().out
    assert "extract: 1/1 reports" in printed
    assert "1 answered, 0 from the cache, 0 by rules" in printed
    assert f"data card   {open_lake(out).url}/card.html" in printed
    assert "cardiomegaly" in (tmp_path / "out" / "card.html").read_text()
    (study,) = open_lake(out).read()
    assert [s.text for s in study.sentences] == ["There is cardiomegaly", "There is no pulmonary edema"]
    monkeypatch.setenv(job.KEY, "secret")
    with serve() as chat:
        chat.default = ANSWER
        model = ["--strategy", "endpoint", "--url", chat.url, "--model", "m", "--cache", str(tmp_path / "cache")]
        for _ in range(2):
            job.run(["--lake", lake, "--out", out, *model])
        assert len(chat.requests) == 1
    printed = capsys.readouterr().out
    assert "100 read, 10 written, 0 retries" in printed
    assert "0 answered, 1 from the cache, 0 by rules" in printed
    assert "secret" not in printed
    (study,) = open_lake(out).read()
    assert [s.text for s in study.sentences] == ["There is cardiomegaly"]
