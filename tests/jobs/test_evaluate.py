from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.command import main
from jobs.evaluate import run
from rayzero.alignment import registry
from rayzero.bundle import save_bundle
from rayzero.config import load_config
from tests.evaluation.lakes import make_lake


def test_the_command_writes_a_report_and_prints_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(None, ["vision.resolution=64", "model.heads=6", "model.blocks=1", "evaluation.overlays=2"])
    bundle = save_bundle(str(tmp_path / "bundle"), registry.build(config), config, {})
    lake = make_lake(tmp_path / "lake", validation=8, test=12).url
    out = tmp_path / "out"
    words = ["--bundle", bundle, "--lake", lake, "--protocol", "phantom", "--out", str(out), "--bootstrap", "20"]
    main(run, words)
    printed = capsys.readouterr().out
    assert "Grounding, pointing accuracy" in printed
    assert f"{out}/report.html" in printed
    report = json.loads((out / "report.json").read_text())
    assert report["bootstrap"]["replicates"] == 20
    assert (out / "report.html").stat().st_size > 10_000

    capsys.readouterr()
    none = str(tmp_path / "none")
    wrong = [
        [*words, "--split", "validation"],
        ["--bundle", bundle, "--lake", none, "--protocol", "phantom"],
        ["--bundle", none, "--lake", lake, "--protocol", "phantom"],
        ["--bundle", bundle, "--lake", lake, "--protocol", "phantim"],
        [*words, "--batch-size", "0"],
    ]
    for mistake in wrong:
        with pytest.raises(SystemExit) as ended:
            main(run, mistake)
        assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "evaluate another split" in lines[0]
    assert "no lake at" in lines[1]
    assert "no bundle here" in lines[2]
    assert "did you mean 'phantom'" in lines[3]
    assert "argument --batch-size: '0' is not a whole number from 1 up" in lines[-1]


def test_without_out_each_evaluation_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of other weights, of another lake or by other labels must not take the place of this one."""
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["vision.resolution=64", "model.heads=6", "model.blocks=1", "evaluation.overlays=0"])
    for name in ("one", "other"):
        # Random weights: the second model is another.
        save_bundle(f"bundles/{name}", registry.build(config), config, {})
    make_lake(tmp_path / "lake", validation=8, test=12)
    asked = ["--lake", "lake", "--protocol", "phantom", "--bootstrap", "20"]
    run(["--bundle", "bundles/one/", *asked])
    (first,) = Path("runs/evaluation").iterdir()
    assert first.name.startswith("phantom-one-")
    run(["--bundle", str(tmp_path / "bundles" / "one"), *asked])
    assert list(Path("runs/evaluation").iterdir()) == [first]
    run(["--bundle", "bundles/other", *asked])
    assert len(list(Path("runs/evaluation").iterdir())) == 2
