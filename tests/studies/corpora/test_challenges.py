"""RSNA, SIIM-ACR, VinDr-CXR and ChestX-Det10 in miniature, and their published tables."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from rayzero.studies.corpora import corpus
from rayzero.studies.corpora.vindr import KAGGLE_LABELS, LABELS, LOCAL
from rayzero.studies.errors import CorpusError
from tests.studies.corpora.trees import loaded, real_file, refs_of, write_csv, write_image
from tests.studies.films import dataset, encode

RSNA = "patientId,x,y,width,height,Target"


def film(path: Path, shape: tuple[int, int] = (1024, 1024)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(shape, 7, np.uint8)
    pixels[0, 0] = 255
    path.write_bytes(encode(dataset(pixels, bits=8, ViewPosition="PA"), uid.RLELossless))


@pytest.fixture
def rsna(tmp_path: Path) -> Path:
    rows = [
        ["a", "", "", "", "", 0],
        ["b", 264.0, 152.0, 213.0, 379.0, 1],
        ["b", 562.0, 152.0, 256.0, 453.0, 1],
        ["c", 1.0, "", 2.0, 2.0, 1],
        ["d", "", "", "", "", 1],
        ["e", 1.0, 1.0, 2.0, 2.0, 0],
    ]
    write_csv(tmp_path / "stage_2_train_labels.csv", RSNA, rows)
    for name in "ab":
        film(tmp_path / f"stage_2_train_images/{name}.dcm")
    return tmp_path


def test_rsna_boxes_are_regions(rsna: Path) -> None:
    refs, refused = refs_of("rsna-pneumonia", rsna)
    study = loaded(refs["b"], rsna)
    assert study.labels == {"Pneumonia": 1}
    assert [region.box for region in study.regions] == [(264, 152, 477, 531), (562, 152, 818, 605)]
    assert study.images[0].view == "frontal"
    assert loaded(refs["a"], rsna).labels == {"Pneumonia": 0}
    assert [q.file for q in refused] == [f"stage_2_train_labels.csv, row {n}" for n in (4, 5, 6)]
    assert "y is ''" in refused[0].reason


def test_trap_10_rsna_has_three_protocols_of_three_test_sets(rsna: Path) -> None:
    write_csv(rsna / "test.csv", "img_path,boxes", [["RSNA/b.dcm", "264;152;213;379|562;152;256;453"]])
    refs, _ = refs_of("rsna-pneumonia-medklip", rsna)
    assert {name: ref.split for name, ref in refs.items()} == {"a": "train", "b": "test"}
    (rsna / "test_list.txt").write_text("stage_2_test_images/z.dcm 1\n")
    (rsna / "val_list.txt").write_text("stage_2_train_images/b.dcm 1\n")
    refs, _ = refs_of("rsna-pneumonia-alta", rsna)
    assert {name: ref.split for name, ref in refs.items()} == {"a": "train", "b": "validation", "z": "test"}
    assert (refs["z"].files[0].path, refs["z"].labels) == ("stage_2_test_images/z.dcm", {"Pneumonia": 1})
    write_csv(rsna / "splits.csv", "study_id,split", [["a", "test"]])
    refs, refused = refs_of("rsna-pneumonia", rsna)
    assert {name: ref.split for name, ref in refs.items()} == {"a": "test"}
    assert "splits.csv does not list" in refused[-1].reason


def test_rsna_lists_that_do_not_fit_are_refused(rsna: Path) -> None:
    write_csv(rsna / "test.csv", "img_path,boxes", [["RSNA/b.dcm", ""]])
    with pytest.raises(CorpusError, match=r"test\.csv, row 1: 'b' with 0 boxes"):
        refs_of("rsna-pneumonia-medklip", rsna)
    (rsna / "val_list.txt").write_text("stage_2_train_images/b.dcm 0\n")
    (rsna / "test_list.txt").write_text("")
    with pytest.raises(CorpusError, match=r"val_list\.txt, line 1: b is listed twice, or has another Target"):
        refs_of("rsna-pneumonia-alta", rsna)


def test_the_published_rsna_table(tmp_path: Path) -> None:
    with zipfile.ZipFile(real_file("kaggle_stage_2_train_labels.csv.zip")) as archive:
        archive.extractall(tmp_path)
    refs, refused = refs_of("rsna-pneumonia", tmp_path)
    assert refused == []
    positive = [ref for ref in refs.values() if ref.labels["Pneumonia"]]
    assert (len(refs), len(positive), sum(len(ref.regions) for ref in positive)) == (26_684, 6_012, 9_555)
    (first,) = (box.box for box in refs["00436515-870c-4b36-a041-de91049b9ab4"].regions[:1])
    assert first == (264, 152, 477, 531)


def siim(root: Path, header: str, rows: list[list[str]]) -> None:
    write_csv(root / "train-rle.csv", header, rows)
    for name, *_ in rows:
        film(root / f"dicom-images-train/st.{name}/se.{name}/{name}.dcm")


@pytest.mark.parametrize(("header", "none"), [("ImageId, EncodedPixels", " -1"), ("ImageId,EncodedPixels", "-1")])
def test_trap_05_column_name_and_sentinel_may_begin_with_a_blank(tmp_path: Path, header: str, none: str) -> None:
    siim(tmp_path, header, [["1.1", none], ["1.2", " 0 4"]])
    refs, refused = refs_of("siim-pneumothorax", tmp_path)
    assert refused == []
    assert {name: dict(ref.labels) for name, ref in refs.items()} == {
        "1.1": {"Pneumothorax": 0},
        "1.2": {"Pneumothorax": 1},
    }


def test_trap_05_runs_are_relative_column_major_and_united_over_rows(tmp_path: Path) -> None:
    # Column 1, rows 2-4, then 5 further pixels down that column, rows 10-11; and column 3, row 0.
    siim(tmp_path, "ImageId, EncodedPixels", [["1.1", "1026 3 5 2"], ["1.1", "3072 1"]])
    refs, _ = refs_of("siim-pneumothorax", tmp_path)
    (region,) = loaded(refs["1.1"], tmp_path).regions
    assert region.mask is not None
    mask = region.mask.array()
    assert mask.shape == (1024, 1024)
    assert sorted(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True)) == [
        (0, 3), (2, 1), (3, 1), (4, 1), (10, 1), (11, 1),
    ]  # fmt: skip


def test_trap_05_an_image_is_in_one_split_and_contradictions_are_on_record(tmp_path: Path) -> None:
    siim(
        tmp_path,
        "ImageId, EncodedPixels",
        [["1.1", "5 1"], ["1.1", "9 1"], ["1.2", "-1"], ["1.2", "5 1"], ["1.3", "5"]],
    )
    film(tmp_path / "dicom-images-train/st.9/se.9/1.9.dcm")
    refs, refused = refs_of("siim-pneumothorax", tmp_path)
    assert list(refs) == ["1.1"]
    assert {q.study_id: q.reason.split(",")[0] for q in refused} == {
        "1.2": "EncodedPixels says both that there is a mask and that there is none",
        "1.3": "the mask '5' is not pairs of gap and length",
        "1.9": "train-rle.csv does not list it",
    }


def test_films_that_the_table_leaves_out_are_in_one_order(tmp_path: Path) -> None:
    siim(tmp_path, "ImageId, EncodedPixels", [["1.1", "-1"]])
    names = [f"1.{number}" for number in range(20, 12, -1)]
    for name in names:
        (tmp_path / f"dicom-images-train/{name}.dcm").touch()
    _, refused = refs_of("siim-pneumothorax", tmp_path)
    assert [q.study_id for q in refused] == sorted(names)


def test_trap_05_the_published_masks(tmp_path: Path) -> None:
    data = gzip.decompress(real_file("siim-pneumothorax-train-rle.csv.gz").read_bytes())
    (tmp_path / "stage_2_train.csv").write_bytes(data)
    refs, refused = refs_of("siim-pneumothorax", tmp_path)
    assert refused == []
    positive = [ref for ref in refs.values() if ref.labels["Pneumothorax"]]
    assert (data.count(b"\n"), len(refs), len(positive)) == (12_954 + 1, 12_047, 2_669)
    masks = [region.mask for ref in positive for region in ref.regions if region.mask is not None]
    areas = [sum(mask.counts[1::2]) for mask in masks]
    assert len(masks) == 2_669
    assert 0 < min(areas) < np.median(areas) < max(areas) < 1024 * 1024 / 2


def vindr(root: Path) -> None:
    labels = ",".join(LABELS)
    seen = {"a": ({"Cardiomegaly", "COPD"}, {"Cardiomegaly"}, set()), "b": ({"No finding"},) * 3}
    rows = [
        [image, f"R{n}", *(int(name in found) for name in LABELS)]
        for image, readers in seen.items()
        for n, found in enumerate(readers)
    ]
    rows.append(["c", "R1", *(0 for _ in LABELS)])
    write_csv(root / "annotations/image_labels_train.csv", f"image_id,rad_id,{labels}", rows)
    boxes = [
        ["a", "R0", "Cardiomegaly", 10, 20, 30, 40],
        ["a", "R1", "Cardiomegaly", 11, 20, 30, 41],
        ["a", "R1", "ILD", 1, 2, 3, 4],
        ["b", "R0", "No finding", "", "", "", ""],
        ["b", "R0", "Cardiomegaly", 30, 20, 10, 40],
    ]
    corners = "x_min,y_min,x_max,y_max"
    write_csv(root / "annotations/annotations_train.csv", f"image_id,rad_id,class_name,{corners}", boxes)
    other = labels.replace("Other diseases", "Other disease")
    test = [["t", *(int(name in ("Other diseases", "ILD")) for name in LABELS)]]
    write_csv(root / "annotations/image_labels_test.csv", f"image_id,{other}", test)
    write_csv(root / "annotations/annotations_test.csv", f"image_id,class_name,{corners}", [["t", "ILD", 1, 2, 3, 4]])
    for name in ("train/a", "train/b", "test/t"):
        film(root / f"{name}.dicom", (64, 48))


def test_trap_09_other_diseases_is_one_label_under_two_names(tmp_path: Path) -> None:
    vindr(tmp_path)
    refs, _ = refs_of("vindr-cxr", tmp_path)
    study = loaded(refs["t"], tmp_path)
    assert (study.split, len(study.labels)) == ("test", 28)
    assert [name for name, value in study.labels.items() if value] == ["ILD", "Other diseases"]
    assert [region.box for region in study.regions] == [(1, 2, 3, 4)]
    assert set(refs["a"].labels) == set(study.labels)


def test_trap_09_three_readers_vote(tmp_path: Path) -> None:
    vindr(tmp_path)
    refs, refused = refs_of("vindr-cxr", tmp_path)
    labels = refs["a"].labels
    assert (labels["Cardiomegaly"], labels["COPD"], labels["ILD"]) == (1, -1, 0)
    assert [region.box for region in loaded(refs["a"], tmp_path).regions] == [(10, 20, 30, 40), (11, 20, 30, 41)]
    assert [(q.study_id, q.reason.split(";")[0]) for q in refused] == [
        ("b", "the box (30, 20, 10, 40) has no area"),
        ("c", "1 readers labelled the image"),
    ]


def test_trap_09_no_finding_has_no_box(tmp_path: Path) -> None:
    vindr(tmp_path)
    refs, _ = refs_of("vindr-cxr", tmp_path)
    assert (refs["b"].labels["No finding"], refs["b"].regions) == (1, ())
    header = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
    rows = [["a", "No finding", 14, f"R{n}", "", "", "", ""] for n in (1, 2)]
    rows.append(["a", "Cardiomegaly", 3, "R3", 1, 2, 3, 4])
    rows.append(["b", "Cardiomegaly", 3, "R3", "", "", "", ""])
    write_csv(tmp_path / "train.csv", header, rows)
    refs, refused = refs_of("vindr-cxr-kaggle", tmp_path)
    assert (refs["a"].labels["No finding"], refs["a"].labels["Cardiomegaly"], refs["a"].regions) == (1, -1, ())
    assert refused[0].reason == "x_min is ''; a number is needed"


def test_trap_09_the_published_challenge_table(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(gzip.decompress(real_file("vinbigdata-train.csv.gz").read_bytes()))
    refs, refused = refs_of("vindr-cxr-kaggle", tmp_path)
    assert refused == []
    assert len(refs) == 15_000
    counts = Counter(name for ref in refs.values() for name, value in ref.labels.items() if value == 1)
    assert set(counts) == set(KAGGLE_LABELS)
    assert len(LOCAL) == 22
    # By definition of the vote: nothing found by two readers leaves no more than one box of each finding.
    assert all(len(ref.regions) >= 2 or not ref.regions for ref in refs.values())


def chestxdet(root: Path, train: list[object], test: object) -> None:
    (root / "train.json").write_text(json.dumps(train))
    (root / "test.json").write_text(json.dumps(test))
    write_image(root / "train_data/36204.png", shape=(64, 64))
    write_image(root / "test_data/7.png", shape=(64, 64))


def test_chestxdet10_joins_syms_and_boxes(tmp_path: Path) -> None:
    both = {"file_name": "36204.png", "syms": ["Effusion", "Mass"], "boxes": [[1, 2, 30, 40], [5, 6, 7, 8.5]]}
    chestxdet(tmp_path, [both], [{"file_name": "7.png", "syms": [], "boxes": []}])
    refs, refused = refs_of("chestx-det10", tmp_path)
    assert refused == []
    study = loaded(refs["36204"], tmp_path)
    assert [(r.finding, r.box) for r in study.regions] == [("Effusion", (1, 2, 30, 40)), ("Mass", (5, 6, 7, 8.5))]
    assert [name for name, value in study.labels.items() if value] == ["Effusion", "Mass"]
    assert (refs["7"].split, sum(loaded(refs["7"], tmp_path).labels.values())) == ("test", 0)


def test_trap_17_chestxdet10_entries_that_are_none_are_on_record(tmp_path: Path) -> None:
    entries: list[object] = [
        {"file_name": "a.png", "syms": ["Mass"], "boxes": []},
        {"file_name": "b.png", "syms": ["Mass"], "boxes": [[1, 2, 3, float("nan")]]},
        {"file_name": "c.png", "syms": ["Gout"], "boxes": [[1, 2, 3, 4]]},
        {"syms": [], "boxes": []},
        "d.png",
    ]
    chestxdet(tmp_path, entries, [])
    refs, refused = refs_of("chestx-det10", tmp_path)
    assert refs == {}
    words = ("one length", "x1, y1, x2, y2", "label 'Gout'", "file_name is None", "an object is needed")
    for number, (item, word) in enumerate(zip(refused, words, strict=True), start=1):
        assert item.file == f"train.json, entry {number}"
        assert word in item.reason
    chestxdet(tmp_path, [], {"images": []})
    with pytest.raises(CorpusError, match=r"test\.json holds a dict"):
        list(corpus("chestx-det10").studies(str(tmp_path)))
