from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.command import main
from jobs.compare import run
from rayzero.evaluation.comparison import chance_range


def report(folder: Path, **changes: Any) -> str:
    """A report.json with two figures and two findings."""
    figures = {
        "classification.macro_auroc": {"value": 0.9, "low": 0.85, "high": 0.95, "n": 10, "chance": 0.5},
        "grounding.pointing_accuracy": {"value": 0.6, "low": None, "high": None, "n": 10, "chance": 0.1},
    }
    auroc = {"value": 0.9, "low": 0.8, "high": 1.0, "n": 10}
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    values = {
        "protocol": "phantom",
        "system": "radzero",
        "lake": {"url": "lake", "fingerprint": "abcdef", "split": "test"},
        "bootstrap": {"replicates": 100, "confidence": 0.95, "unit": "patient"},
        "headline": figures,
        "classification": {"per_class": {"edema": {"auroc": auroc}, "<b>hernia</b>": {"auroc": nothing}}},
        **changes,
    }
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(values))
    return str(folder)


def test_reports_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = report(tmp_path / "one")
    only = {"classification.macro_auroc": {"value": 0.8, "low": 0.7, "high": 0.9, "n": 10, "chance": 0.5}}
    two = report(tmp_path / "two", system="carzero", headline=only)
    main(run, [f"a={one}", f"b={two}", "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["figure", "a", "b", "chance"]
    assert lines[1].split("AUROC")[1].split() == ["0.900", "[0.85,", "0.95]", "0.800", "[0.70,", "0.90]", "0.500"]
    assert lines[2].split("accuracy")[1].split() == ["0.600", "-", "0.100"]
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["systems"] == {"a": "radzero", "b": "carzero"}
    assert written["figures"]["grounding.pointing_accuracy"]["b"] is None
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "2 systems on the same studies" in page
    assert "<b>hernia</b>" not in page


def test_systems_on_the_same_replicates_are_compared_in_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0.8, 0.05, 500)
    folders = {}
    for name, gain, key in (("a", 0.0, "patients"), ("b", 0.02, "patients"), ("c", 0.02, "others")):
        folders[name] = report(tmp_path / name)
        samples = shared + gain + rng.normal(0, 0.002, 500)
        np.savez(tmp_path / name / "replicates.npz", bootstrap=np.array(key), **{"classification.macro_auroc": samples})
    main(run, [*(f"{name}={folder}" for name, folder in folders.items()), "--out", str(tmp_path / "out")])
    (gap,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["differences"]
    assert (gap["figure"], gap["system"], gap["value"]) == ("classification.macro_auroc", "b", 0.0)
    assert gap["low"] > 0.01
    assert gap["p"] == pytest.approx(2 / 501)
    assert "b - a: +0.000" in capsys.readouterr().out
    assert "Differences in pairs" in (tmp_path / "out" / "comparison.html").read_text()


def test_what_papers_report_stands_beside_ours(tmp_path: Path) -> None:
    value = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 10}
    figure = {"name": "Dice of positive images", "published": value, "reference": {"RadZero 518": 0.171}}
    one = report(tmp_path / "one", figures={"dice": figure}, headline={"phantom.dice": {**value, "chance": None}})
    main(run, [f"a={one}", "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "What papers report" in page
    assert "RadZero 518&nbsp;<b>0.171</b>" in page
    assert "Dice of positive images" in page


def test_chance_differs_where_systems_read_other_images() -> None:
    assert chance_range({"film": {"chance": 0.093}, "ct": {"chance": 0.022}, "none": None}) == "0.022 to 0.093"
    assert chance_range({"film": {"chance": 0.5}, "ct": {"chance": 0.5}}) == "0.500"


def test_without_out_each_comparison_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = report(tmp_path / "one")
    two = report(tmp_path / "two", system="carzero")
    for words in ([f"a={one}", f"b={two}"], ["a=one/", f"b={two}"]):
        run(words)
        (first,) = Path("runs/comparison").iterdir()
        assert first.name.startswith("a-b-")
    before = (first / "comparison.json").read_bytes()
    # Another pair, and the same one after a report in its place changed.
    run([f"a={two}", f"b={one}"])
    values = json.loads((tmp_path / "two" / "report.json").read_text())
    (tmp_path / "two" / "report.json").write_text(json.dumps({**values, "system": "brgsa"}))
    run([f"a={one}", f"b={two}"])
    assert len(list(Path("runs/comparison").iterdir())) == 3
    assert (first / "comparison.json").read_bytes() == before


def test_what_cannot_be_compared_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = report(tmp_path / "one")
    other = report(tmp_path / "other", lake={"url": "lake", "fingerprint": "123", "split": "test"})
    old = report(tmp_path / "old")
    (tmp_path / "old" / "report.json").write_text("{}")
    torn = report(tmp_path / "torn")
    (tmp_path / "torn" / "report.json").write_text("{")
    cases = [
        ([f"a={one}", f"b={other}"], "lake.fingerprint is 123 and abcdef"),
        ([f"a={old}"], "not written by this version"),
        ([f"a={torn}"], "is damaged"),
        ([f"a={tmp_path}"], "no report.json here"),
        ([one], "is not of the form label=folder"),
        ([f"a={one}", f"a={one}"], "labelled 'a'"),
    ]
    for words, message in cases:
        with pytest.raises(SystemExit) as ended:
            main(run, [*words, "--out", str(tmp_path / "out")])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
