"""CheXpert, its reports, and the two retrieval sets drawn from it, in miniature."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rayzero.studies.corpora import load, mimic
from rayzero.studies.corpora.chexpert import LABELS
from rayzero.studies.corpora.chexpert_retrieval import EIGHT, FIVE
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import write_lake
from tests.studies.corpora.trees import loaded, real_file, refs_of, write_csv, write_image

HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(LABELS)
SMALL = "CheXpert-v1.0-small/"


def row(path: str, side: str = "Frontal", position: str = "AP", **labels: object) -> list[object]:
    named = {name.replace("_", " "): value for name, value in labels.items()}
    return [path, "Female", 68, side, position, *(named.get(name, "") for name in LABELS)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    p1 = "train/patient00001/study1"
    train = [
        row(f"{SMALL}{p1}/view1_frontal.jpg", No_Finding="1.0", Pneumothorax="0.0", Edema="-1.0"),
        row(f"{SMALL}{p1}/view2_lateral.jpg", "Lateral", "", No_Finding="1.0", Pneumothorax="0.0", Edema="-1.0"),
        row(f"{SMALL}train/patient00002/study2/view1_frontal.jpg", "Frontal", "LL", Edema="1.0"),
    ]
    write_csv(tmp_path / "train.csv", HEADER, train)
    valid = [row(f"{SMALL}valid/patient64541/study1/view1_frontal.jpg", Edema="0.0")]
    write_csv(tmp_path / "valid.csv", HEADER, valid)
    for seed, cells in enumerate([*train, *valid]):
        write_image(tmp_path / str(cells[0]).removeprefix(SMALL), seed=seed)
    return tmp_path


def test_studies_of_the_tables(root: Path) -> None:
    refs, refused = refs_of("chexpert", root)
    assert refused == []
    study = loaded(refs["patient00001/study1"], root)
    assert [(i.image_id, i.view) for i in study.images] == [
        ("patient00001/study1/view1_frontal", "frontal"),
        ("patient00001/study1/view2_lateral", "lateral"),
    ]
    assert study.labels == {"No Finding": 1, "Pneumothorax": 0, "Edema": -1}
    assert {name: ref.split for name, ref in refs.items()} == {
        "patient00001/study1": "train",
        "patient00002/study2": "train",
        "patient64541/study1": "validation",
    }


def test_test_labels_are_joined_to_the_folders(root: Path) -> None:
    folder = root / "test/patient64741/study1"
    for view in ("view1_frontal", "view2_lateral"):
        write_image(folder / f"{view}.jpg")
    cells = [int(name == "Edema") for name in LABELS]
    rows = [[f"CheXpert-v1.0/test/patient{n}/study1", *cells] for n in (64741, 64742)]
    write_csv(root / "groundtruth.csv", "Study," + ",".join(LABELS), rows)
    refs, _ = refs_of("chexpert", root)
    study = loaded(refs["patient64741/study1"], root)
    assert study.split == "test"
    assert [image.view for image in study.images] == ["frontal", "lateral"]
    assert (len(study.labels), study.labels["Edema"], study.labels["Fracture"]) == (14, 1, 0)
    assert refs["patient64742/study1"].files == ()


def test_rows_that_disagree_are_on_record(root: Path) -> None:
    path = f"{SMALL}train/patient00001/study1/view"
    rows = [
        row(f"{path}1_frontal.jpg", Edema="1.0"),
        row(f"{path}2_frontal.jpg", Edema="0.0"),
        row(f"{path}3_frontal.jpg", Edema="yes"),
        row(f"{path}4_frontal.jpg", "Oblique", Edema="1.0"),
        row("somewhere.jpg"),
    ]
    write_csv(root / "train.csv", HEADER, rows)
    _, refused = refs_of("chexpert", root)
    assert [q.file for q in refused] == [f"train.csv, row {n}" for n in (2, 3, 4, 5)]
    reasons = " | ".join(q.reason for q in refused)
    for words in ("labels differ", "label Edema is 'yes'", "Frontal/Lateral is 'Oblique'", "'somewhere.jpg'"):
        assert words in reasons


def test_trap_13_labels_are_joined_by_name_although_corpora_order_them_differently(root: Path) -> None:
    assert sorted(LABELS) == list(mimic.LABELS)
    assert mimic.LABELS != LABELS
    alphabetical = sorted(LABELS)
    cells = [SMALL + "train/patient00009/study1/view1_frontal.jpg", "F", 1, "Frontal", "AP"]
    values = ["1.0" if name == "Support Devices" else "0.0" if name == "Atelectasis" else "" for name in alphabetical]
    write_csv(root / "train.csv", "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(alphabetical), [[*cells, *values]])
    refs, _ = refs_of("chexpert", root)
    assert refs["patient00009/study1"].labels == {"Support Devices": 1, "Atelectasis": 0}


PLUS = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_narrative,section_findings,section_impression,age,split"
)


def plus_row(study: int, order: object, report: str, *, view: str = "view1_frontal", **changes: object) -> list[object]:
    path = f"train/patient00001/study{study}/{view}.jpg"
    side = "Lateral" if view.endswith("lateral") else "Frontal"
    cells = [path, "x.dcm", side, "AP", "patient00001", order, f"NARRATIVE:\n{report}", "", "", report, 60, "train"]
    return list({**dict(zip(PLUS.split(","), cells, strict=True)), **changes}.values())


@pytest.mark.parametrize("folder", ["", "PNG", "PNG/PNG"])
def test_chexpert_plus_orders_studies_by_report_and_reads_png(tmp_path: Path, folder: str) -> None:
    rows = [
        plus_row(2, 1.0, "1. Small left pleural effusion."),
        plus_row(2, 1.0, "1. Small left pleural effusion.", view="view2_lateral"),
        plus_row(1, 2.0, "Resolved, no pleural effusion."),
        plus_row(3, "", "Undated."),
        plus_row(1, 2.0, "Another report.", view="view2_frontal"),
    ]
    write_csv(tmp_path / "df_chexpert_plus_240401.csv", PLUS, rows)
    for cells in rows[:3]:
        write_image(tmp_path / folder / str(cells[0]).replace(".jpg", ".png"))
    labels: dict[str, object] = {**dict.fromkeys(LABELS), "Pleural Effusion": 1.0, "Edema": -1.0}
    (tmp_path / "chexbert_labels").mkdir()
    line = json.dumps({"path_to_image": rows[0][0], **labels, "Fracture": float("nan")})
    (tmp_path / "chexbert_labels/report_fixed.json").write_text(line + "\n")
    refs, refused = refs_of("chexpert-plus", tmp_path)
    first, second = refs["patient00001/study2"], refs["patient00001/study1"]
    assert (first.prior_study_id, second.prior_study_id) == (None, "patient00001/study2")
    study = loaded(first, tmp_path)
    assert [image.view for image in study.images] == ["frontal", "lateral"]
    assert study.labels == {"Pleural Effusion": 1, "Edema": -1}
    assert study.report.impression == "1. Small left pleural effusion."
    assert [s.text for s in study.sentences] == ["There is pleural effusion on the left"]
    assert [q.file for q in refused] == [f"df_chexpert_plus_240401.csv, row {n}" for n in (4, 5)]


def test_chexpert_plus_without_its_images_says_where_they_may_be(tmp_path: Path) -> None:
    write_csv(tmp_path / "df_chexpert_plus_240401.csv", PLUS, [plus_row(2, 1, "x")])
    with pytest.raises(CorpusError, match=r"PNG/PNG/train/patient00001/study2/view1_frontal\.png"):
        refs_of("chexpert-plus", tmp_path)


def test_chexpert_plus_reads_on_where_the_first_image_is_missing(tmp_path: Path) -> None:
    rows = [plus_row(1, 1, "x"), plus_row(2, 2, "Edema."), ["elsewhere.jpg", *plus_row(3, 3, "y")[1:]]]
    write_csv(tmp_path / "df_chexpert_plus_240401.csv", PLUS, [rows[2], rows[0], rows[1]])
    write_image(tmp_path / "PNG" / str(rows[1][0]).replace(".jpg", ".png"))
    refs, refused = refs_of("chexpert-plus", tmp_path)
    assert sorted(refs) == ["patient00001/study1", "patient00001/study2"]
    assert [q.file for q in refused] == ["df_chexpert_plus_240401.csv, row 1"]
    assert len(loaded(refs["patient00001/study2"], tmp_path).images) == 1
    study, lost = load(refs["patient00001/study1"], str(tmp_path))
    assert study is None
    assert lost[0].reason == "the file does not exist"
    write_csv(tmp_path / "df_chexpert_plus_240401.csv", PLUS, rows[2:])
    with pytest.raises(CorpusError, match="the path_to_image of none of the first 1 rows is one of CheXpert's"):
        refs_of("chexpert-plus", tmp_path)


def five_rows(per_class: int, first: int = 1) -> list[list[object]]:
    rows = []
    for index, name in enumerate(FIVE * per_class):
        path = f"{SMALL}train/patient{first + index:05d}/study1/view1_frontal.jpg"
        rows.append([index, *row(path, **{name.replace(" ", "_"): "1.0"}), "Same impression."])
    return rows


def write_five(root: Path, rows: list[list[object]]) -> None:
    write_csv(root / "chexpert_5x200.csv", f",{HEADER},Report Impression", rows)
    for cells in rows:
        write_image(root / str(cells[1]).removeprefix(SMALL), seed=int(str(cells[1]).split("patient")[1][:5]))


def test_trap_15_lists_named_5x200_differ_and_duplicate_reports_stay(tmp_path: Path) -> None:
    lakes = []
    for first in (1, 2):
        root = tmp_path / str(first)
        write_five(root, five_rows(2, first))
        refs, refused = refs_of("chexpert-5x200", root)
        assert refused == []
        studies = [loaded(ref, root) for ref in refs.values()]
        assert len(studies) == 10
        assert {study.report.impression for study in studies} == {"Same impression."}
        assert all(list(study.labels) == list(FIVE) and sum(study.labels.values()) == 1 for study in studies)
        lakes.append(write_lake(str(tmp_path / f"lake{first}"), studies))
    assert lakes[0].fingerprint != lakes[1].fingerprint


def test_trap_15_unequal_classes_have_no_chance_level(tmp_path: Path) -> None:
    write_five(tmp_path, five_rows(2)[:-1])
    with pytest.raises(CorpusError, match=r"Atelectasis 2, .*Pleural Effusion 1"):
        refs_of("chexpert-5x200", tmp_path)


def test_8x200_queries_and_candidates_are_apart(tmp_path: Path) -> None:
    paths = [f"CheXpert-v1.0/train/patient{n:05d}/study1/view1_frontal.jpg" for n in range(16)]
    queries = list(zip(EIGHT, paths[:8], strict=True))
    write_csv(tmp_path / "image-retrieval/query.csv", "Variable,Path", queries)
    candidates = [row(path, **{name.replace(" ", "_"): "1.0"}) for name, path in zip(EIGHT, paths[8:], strict=True)]
    write_csv(tmp_path / "image-retrieval/candidate.csv", HEADER, candidates)
    for path in paths:
        write_image(tmp_path / path.removeprefix("CheXpert-v1.0/"))
    refs, refused = refs_of("chexpert-8x200", tmp_path)
    assert refused == []
    assert [name.split("/")[0] for name in refs] == ["query"] * 8 + ["candidate"] * 8
    study = loaded(refs["candidate/patient00008/study1/view1_frontal"], tmp_path)
    assert study.images[0].image_id == "patient00008/study1/view1_frontal"
    assert [name for name, value in study.labels.items() if value] == ["Atelectasis"]


def test_the_published_train_table(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(gzip.decompress(real_file("chexpert_train.csv.gz").read_bytes()))
    write_csv(tmp_path / "valid.csv", HEADER, [])
    refs, refused = refs_of("chexpert", tmp_path)
    assert refused == []
    assert (len(refs), len({ref.patient_id for ref in refs.values()})) == (187_641, 64_540)
    views = [file.view for ref in refs.values() for file in ref.files]
    assert (views.count("frontal"), views.count("lateral")) == (191_027, 32_387)
