"""One command from bundles and lakes to a table of every protocol."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.command import main
from jobs.compare import run
from rayzero.bundle import load_bundle
from rayzero.evaluation.comparison import Comparison
from rayzero.evaluation.overview import Overview
from rayzero.evaluation.protocols.registry import find_protocol
from rayzero.studies.lake import open_lake, write_lake
from tests.evaluation.lakes import make_lake, studies
from tests.evaluation.miniatures import chestxdet_tree, ingested


@pytest.fixture
def lakes(tmp_path: Path) -> list[str]:
    chestxdet_tree(tmp_path / "tree")
    boxes = ingested("chestx-det10", tmp_path / "tree", tmp_path / "boxes")
    few = [replace(one, corpus="rsna-pneumonia-alta", labels={"Pneumonia": n % 2}) for n, one in
           enumerate(studies("test", 6, 0))]  # fmt: skip
    volumes = [replace(one, corpus="ct-rate") for one in studies("test", 2, 0)]
    return [
        boxes.url,
        write_lake(str(tmp_path / "few"), few).url,
        write_lake(str(tmp_path / "volumes"), volumes).url,
    ]


def test_bundles_are_measured_by_every_protocol_that_fits(
    bundle_url: str, lakes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [f"one={bundle_url}", f"other={bundle_url}", "--lakes", *lakes, "--bootstrap", "20", "--out", str(out)]
    main(run, words)
    printed = capsys.readouterr().out
    table = json.loads((out / "overview.json").read_text())
    assert table["systems"] == ["one", "other"]
    # A lake of CT volumes is not for a bundle that reads films, and six images are too few for ten folds.
    assert list(table["protocols"]) == ["chestxdet10"]
    assert [(one["system"], one["protocol"]) for one in table["not_measured"]] == [
        ("one", "rsna-alta"),
        ("other", "rsna-alta"),
    ]
    assert "ten stratified folds need ten images" in table["not_measured"][0]["reason"]
    figures = table["protocols"]["chestxdet10"]["figures"]
    report = json.loads((out / "chestxdet10/one/report.json").read_text())
    assert figures["chestxdet10.pointing"]["one"]["value"] == report["figures"]["pointing"]["strict"]["value"]
    assert figures["chestxdet10.pointing"]["one"] == figures["chestxdet10.pointing"]["other"]
    rows = [line for line in printed.splitlines() if line.startswith(("chestxdet10 ", " "))]
    assert [" ".join(line[19:59].split()) for line in rows] == ["Macro AUROC", "Pointing accuracy"]
    assert f"{report['figures']['macro_auroc']['strict']['value']:.3f}" in rows[0]
    assert "not measured: one on rsna-alta: split 'test'" in printed
    page = (out / "overview.html").read_text()
    assert 'href="chestxdet10/comparison.html"' in page
    assert "CARZero&nbsp;<b>0.543</b>" in page
    assert (out / "chestxdet10/comparison.html").exists()
    # What has been scored is not scored again.
    kept = {path: path.stat().st_mtime_ns for path in (out / "chestxdet10").glob("*/scores/*")}
    assert kept
    main(run, words)
    assert {path: path.stat().st_mtime_ns for path in (out / "chestxdet10").glob("*/scores/*")} == kept


def test_without_out_each_table_has_a_folder_of_its_own(
    bundle_url: str, lakes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"one={bundle_url}", "--bootstrap", "20", "--lakes", lakes[0]]
    for _ in range(2):
        run(words)
        (first,) = Path("runs/comparison").iterdir()
        assert (first / "chestxdet10/one/report.json").exists()
    run([*words, lakes[1]])
    assert len(list(Path("runs/comparison").iterdir())) == 2


def test_what_no_protocol_measures_is_said(
    bundle_url: str, lakes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["--lakes", lakes[2]], "no protocol measures these lakes"),
        (["--lakes", lakes[1]], "ten stratified folds need ten images"),
        (["--lakes", lakes[0], lakes[0]], "two lakes are of protocol 'chestxdet10'"),
        (["--lakes", lakes[0], "--labels", "ct-rate-lt"], "not of the form protocol=CSV"),
        (["--lakes", lakes[0], "--labels", "ctrate-lt=x.csv"], "did you mean 'ct-rate-lt'"),
        (["--lakes", lakes[0], "--labels", f"ct-rate-lt={tmp_path}/absent.csv"], "absent.csv"),
        (["--lakes", lakes[0], "--labels", "phantom=x.csv"], "'phantom' takes its labels from the lake"),
    ):
        with pytest.raises(SystemExit):
            main(run, [f"a={bundle_url}", *words, "--bootstrap", "0", "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err
    # A table of labels is read before hours go into what needs none.
    assert not (tmp_path / "out" / "chestxdet10").exists()
    # What is wrong with the second bundle is told before the first is measured.
    with pytest.raises(SystemExit):
        main(run, [f"a={bundle_url}", "b=nowhere", "--lakes", lakes[0], "--out", str(tmp_path / "early")])
    assert "no bundle here" in capsys.readouterr().err
    assert not (tmp_path / "early").exists()


def test_a_figure_of_an_oracle_is_held_against_those_of_papers() -> None:
    def value(of: float) -> dict[str, float | int | None]:
        return {"value": of, "low": None, "high": None, "n": 4}

    figures = {
        "dice": {"name": "Dice", "published": value(0.15), "strict": value(0.1), "reference": {"MedKLIP": 0.044}},
        "macro_auroc": {
            "name": "AUROC",
            "published": value(0.9),
            "strict": value(0.9),
            "reference": {"MedKLIP": 0.897},
        },
    }
    headline = {f"siim.{key}": {**one["strict"], "chance": None} for key, one in figures.items()}  # type: ignore[dict-item]
    comparison = Comparison({"a": {"protocol": "siim", "headline": headline, "figures": figures}})
    overview = Overview(("a", "b"), {"siim": comparison}, [("b", "siim", "no masks")])
    assert [row.published for row in overview.rows] == [{"a": 0.15, "b": None}, {"a": None, "b": None}]
    page = overview.to_html()
    assert page.count("as published 0.150") == 1
    assert "or could not be measured (below)" in page


def test_a_protocol_fits_its_own_corpora(bundle_url: str, tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake")
    config = load_bundle(bundle_url).config
    assert not find_protocol("phantom").fits(lake, config)
    named = write_lake(str(tmp_path / "named"), [replace(one, corpus="phantom") for one in studies("test", 1, 0)])
    assert find_protocol("phantom").fits(open_lake(named.url), config)
    assert not find_protocol("siim").fits(named, config)
