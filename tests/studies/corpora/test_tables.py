"""Published tables: what is wrong with one is said with its file, row and field."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayzero.studies.corpora.labels import Closed, Splits, link_priors, own_split
from rayzero.studies.corpora.regions import box_from_corner, place, union_of_relative_runs
from rayzero.studies.corpora.tables import find_files, parse_json, read_rows
from rayzero.studies.errors import CorpusError
from rayzero.studies.study import Image, Mask, Region


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.csv.zip"])
def test_plain_and_compressed_tables_read_alike(tmp_path: Path, name: str) -> None:
    text = '\ufeffa, b ,,c\n 1 ,"x\ny",0,\n2,"q,""r""",0,z\n'.encode()
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("t.csv", text)
    else:
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    rows = list(read_rows(str(tmp_path), name, ("a", "b")))
    assert [row.cells for row in rows] == [{"a": "1", "b": "x\ny", "c": ""}, {"a": "2", "b": 'q,"r"', "c": "z"}]
    assert [row.cells for row in read_rows(str(tmp_path), name, ("b",), optional=("c",))][1] == {"b": 'q,"r"', "c": "z"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\n1\n", r"t\.csv lacks the column\(s\) b; it has: a"),
        (b"a,b\n1,2\n1,2,3\n", r"t\.csv, row 2: 3 cells, the header has 2"),
        (b"a,b\n1,2\n\n5\n", r"t\.csv, row \d: 1 cells"),
        (b"a,b\n\xff,2\n", "UTF-8"),
        (b"a,b,b\n1,2,3\n", "column b more than once"),
        (b"", "row of column names"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=words):
        list(read_rows(str(tmp_path), "t.csv", ("a", "b")))


def test_a_cut_gzip_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 999)[:-30])
    with pytest.raises(CorpusError, match=r"t\.csv\.gz cannot be read"):
        list(read_rows(str(tmp_path), "t.csv.gz", ("a",)))


def test_cells_convert_or_name_the_field(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("n,x,label,view\n3.0,nan,0.5,Side\n")
    (row,) = read_rows(str(tmp_path), "t.csv", ("n",))
    assert row.integer("n") == 3
    for attempt, words in (
        (lambda: row.real("x"), "x is 'nan'"),
        (lambda: row.integer("view"), "view is 'Side'"),
        (lambda: row.labels(["label"]), "label label is '0.5'"),
        (lambda: row.one_of("view", {"Frontal": 1}), "view is 'Side'; known are 'Frontal'"),
    ):
        with pytest.raises(ValueError, match=words):
            attempt()
    assert row.refused(ValueError("why"), study_id="s").file == "t.csv, row 1"


def test_trap_17_a_bare_nan_in_json_is_a_blank(tmp_path: Path) -> None:
    assert parse_json('{"view_position": NaN}', "x.json") == {"view_position": None}
    with pytest.raises(CorpusError, match=r"x\.json is not JSON"):
        parse_json("__import__('os')", "x.json")


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").touch()
    with pytest.raises(CorpusError, match="two files of one image"):
        find_files(str(tmp_path), (".png",), key=lambda path: path.rpartition("/")[2])


def test_own_split_is_by_patient_and_in_proportion() -> None:
    splits = [own_split(f"p{n}") for n in range(4000)]
    assert splits == [own_split(f"p{n}") for n in range(4000)]
    assert [round(splits.count(s) / 4000, 1) for s in ("train", "validation", "test")] == pytest.approx(
        [0.7, 0.2, 0.1], abs=0.1
    )
    assert abs(splits.count("train") / 4000 - 0.7) < 0.03


def test_a_table_of_splits_rules(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text("study_id,split\ns1,test\ns2,train\n")
    splits = Splits(str(tmp_path), default="train")
    assert (splits.of("s1", "p"), splits.of("s2", "p")) == ("test", "train")
    with pytest.raises(ValueError, match="does not list"):
        splits.of("s3", "p")
    (tmp_path / "splits.csv").write_text("study_id,split\ns1,test\ns1,train\n")
    with pytest.raises(CorpusError, match=r"row 2: study s1 is in two splits"):
        Splits(str(tmp_path))


def test_the_prior_is_strictly_earlier() -> None:
    order = {"a": ("p", 5), "b": ("p", 1), "c": ("p", 5), "d": ("p", 9), "e": ("q", 2)}
    assert link_priors(order) == {"a": "b", "c": "b", "d": "c"}


def test_closed_labels_are_a_mapping() -> None:
    zeros = dict.fromkeys(("x", "y"), 0)
    assert dict(Closed(zeros, ["y"])) == {"x": 0, "y": 1}
    with pytest.raises(ValueError, match="label 'z' is not one of the 2"):
        Closed(zeros, ["z"])


def test_regions_are_cut_to_the_image_or_on_record() -> None:
    image = Image.from_array("i", np.zeros((10, 20), np.uint8), view="frontal", bits=8)
    region = Region(image_id="i", finding="f", phrase="f", box=(-2, 1, 25, 8))
    outside = Region(image_id="i", finding="f", phrase="f", box=box_from_corner(30, 1, 4, 4))
    masked = Region(image_id="i", finding="f", phrase="f", mask=Mask.from_array(np.ones((4, 4))))
    kept, lost = place("s", [region, outside, masked], [image], {})
    assert [r.box for r in kept] == [(0, 1, 20, 8)]
    assert "outside the image" in lost[0].reason
    assert "a mask of 4x4 pixels, the image has 10x20" in lost[1].reason
    _, lost = place("s", [region], [image], {"i": (1024, 1024)})
    assert "measured on 1024x1024" in lost[0].reason
    with pytest.raises(ValueError, match="no area"):
        box_from_corner(1, 1, 0, 4)


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    texts=st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4), max_size=3),
)
def test_the_mask_of_runs_is_that_of_the_drawn_image(
    height: int, width: int, texts: list[list[tuple[int, int]]]
) -> None:
    flat, runs = np.zeros(height * width, dtype=bool), []
    for pairs in texts:
        position, kept = 0, ""
        for gap, length in pairs:
            if position + gap + length <= flat.size:
                flat[position + gap : position + gap + length] = True
                position, kept = position + gap + length, f"{kept} {gap} {length}"
        runs.append(kept)
    assert union_of_relative_runs(runs, (height, width)) == Mask.from_array(flat.reshape(width, height).T)


@pytest.mark.parametrize("runs", ["3", "1 -2", "8 9"])
def test_bad_runs_are_refused(runs: str) -> None:
    with pytest.raises(ValueError, match="mask"):
        union_of_relative_runs([runs], (4, 4))
