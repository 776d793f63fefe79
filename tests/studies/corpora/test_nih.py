"""NIH ChestX-ray14 in miniature, and its published tables."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rayzero.studies.corpora.nih import LABELS, read_box_list
from rayzero.studies.corpora.tables import read_rows
from rayzero.studies.errors import CorpusError
from tests.studies.corpora.trees import loaded, real_file, refs_of, write_csv, write_image

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def row(name: str, labels: str, follow_up: int, patient: int, view: str = "PA") -> list[object]:
    return [name, labels, follow_up, patient, 57, "M", view, 2682, 2749, 0.143, 0.143]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = [
        row("00000001_000.png", "Cardiomegaly", 0, 1),
        row("00000001_001.png", "Cardiomegaly|Emphysema", 1, 1, "AP"),
        row("00000002_000.png", "No Finding", 0, 2),
        row("00000003_000.png", "Infiltration", 0, 3),
    ]
    write_csv(tmp_path / "Data_Entry_2017_v2020.csv", HEADER, rows)
    write_csv(
        tmp_path / "BBox_List_2017.csv",
        BOXES,
        [
            ["00000003_000.png", "Infiltrate", 225.5, 547.0, 86.75, 79.25],
            ["00000003_000.png", "Shadow", 1, 1, 1, 1],
            ["00000009_000.png", "Mass", 1, 1, 1, 1],
        ],
    )
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n")
    (tmp_path / "test_list.txt").write_text("00000002_000.png\n00000003_000.png\n")
    for number, cells in enumerate(rows):
        folder = "images" if number < 2 else "images_002/images"
        write_image(tmp_path / folder / str(cells[0]), shape=(1024, 1024), seed=number)
    return tmp_path


def test_images_are_studies_of_their_patient(root: Path) -> None:
    refs, _ = refs_of("nih-chestxray14", root)
    first, second = refs["00000001_000"], refs["00000001_001"]
    assert (first.prior_study_id, second.prior_study_id) == (None, "00000001_000")
    assert (first.split, refs["00000003_000"].split) == ("train", "test")
    study = loaded(second, root)
    assert (study.patient_id, study.images[0].view) == ("1", "frontal")
    assert [name for name, value in study.labels.items() if value] == ["Cardiomegaly", "Emphysema"]
    assert sum(refs["00000002_000"].labels.values()) == 0


def test_trap_06_infiltrate_of_the_boxes_is_infiltration_of_the_labels(root: Path) -> None:
    refs, refused = refs_of("nih-chestxray14", root)
    (region,) = loaded(refs["00000003_000"], root).regions
    assert (region.finding, region.box) == ("Infiltration", (225.5, 547, 312.25, 626.25))
    assert [(q.file, q.study_id) for q in refused] == [
        ("BBox_List_2017.csv, row 2", "00000003_000"),
        ("BBox_List_2017.csv", "00000009_000"),
    ]


def test_trap_06_headers_split_by_commas_and_gender_or_sex(root: Path) -> None:
    before, _ = refs_of("nih-chestxray14", root)
    table = root / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Patient Gender", "Patient Sex"))
    assert refs_of("nih-chestxray14", root)[0] == before
    boxes = root / "BBox_List_2017.csv"
    boxes.write_text(boxes.read_text().replace("79.25\n", "79.25,,,\n"))
    assert loaded(refs_of("nih-chestxray14", root)[0]["00000003_000"], root).regions
    boxes.write_text(boxes.read_text().replace(",79.25,,,", ""))
    with pytest.raises(CorpusError, match=r"BBox_List_2017\.csv, row 1: 5 cells"):
        refs_of("nih-chestxray14", root)


def test_trap_06_the_two_test_lists_are_two_corpora(root: Path) -> None:
    (root / "train_list.txt").write_text("00000001_000.png\n")
    with pytest.raises(CorpusError, match="use --corpus nih-chestxray14"):
        refs_of("nih-chestxray14-community", root)
    flags = {"train": "00000001_000", "val": "00000002_000", "test": "00000003_000"}
    for name, image in flags.items():
        values = ["1" if label == "Pleural_Thickening" and name == "test" else "0" for label in LABELS]
        (root / f"{name}_list.txt").write_text(f"images/{image}.png {' '.join(values)}\n")
    refs, refused = refs_of("nih-chestxray14-community", root)
    assert {name: ref.split for name, ref in refs.items()} == {
        "00000001_000": "train",
        "00000002_000": "validation",
        "00000003_000": "test",
    }
    # The benchmark's truth is in its list, whatever the table says.
    assert [n for n, v in refs["00000003_000"].labels.items() if v] == ["Pleural_Thickening"]
    assert [q.study_id for q in refused if "no list" in q.reason] == ["00000001_001"]
    with pytest.raises(CorpusError, match=r"test_list\.txt, line 1: 15 cells.*nih-chestxray14-community"):
        refs_of("nih-chestxray14", root)


def test_an_image_in_two_lists_is_refused(root: Path) -> None:
    (root / "test_list.txt").write_text("00000001_000.png\n")
    with pytest.raises(CorpusError, match="also in the list of split train"):
        refs_of("nih-chestxray14", root)


def test_bad_rows_and_labels_are_on_record(root: Path) -> None:
    rows = [row("00000001_000.png", "Cardiomegaly|Gout", 0, 1), row("00000001_001.png", "Edema", 0, 1)]
    rows[1][2] = "first"
    write_csv(root / "Data_Entry_2017_v2020.csv", HEADER, rows)
    refs, refused = refs_of("nih-chestxray14", root)
    assert refs == {}
    reasons = " | ".join(q.reason for q in refused)
    assert "label 'Gout' is not one of the 14" in reasons
    assert "Follow-up # is 'first'" in reasons


def test_trap_06_the_published_tables(tmp_path: Path) -> None:
    for name in ("Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"):
        (tmp_path / name).write_bytes(gzip.decompress(real_file(f"{name}.gz").read_bytes()))
    names = [item["Image Index"] for item in read_rows(str(tmp_path), "Data_Entry_2017_v2020.csv", ("Image Index",))]
    # The lists themselves are not in the wheel: the first 86,524 stand for them.
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[:86_524]))
    (tmp_path / "test_list.txt").write_text("\n".join(names[86_524:]))
    refs, refused = refs_of("nih-chestxray14", tmp_path)
    assert refused == []
    assert (len(refs), len({ref.patient_id for ref in refs.values()})) == (112_120, 30_805)
    count = {name: sum(ref.labels[name] for ref in refs.values()) for name in ("Infiltration", "Hernia", "Edema")}
    assert count == {"Infiltration": 19_894, "Hernia": 227, "Edema": 2_303}
    assert sum(not any(ref.labels.values()) for ref in refs.values()) == 60_361
    boxed = [ref for ref in refs.values() if ref.regions]
    assert (len(boxed), sum(len(ref.regions) for ref in boxed)) == (880, 984)
    assert sum(region.finding == "Infiltration" for ref in boxed for region in ref.regions) == 123
    assert sum(1 for _ in read_box_list(str(tmp_path), "BBox_List_2017.csv")) == 984
