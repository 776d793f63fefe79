"""Each benchmark's tree as published, in miniature: a dozen small images whose findings are bright squares.

python -m tests.evaluation.miniatures miniatures

writes each as a lake of its corpus, and ``ct-rate-lt.csv``, to try every protocol without any data.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from pydicom import uid

from rayzero.evaluation.protocols.ct_rate import LONG_TAIL
from rayzero.studies.corpora import (
    StudyRef,
    chestxdet,
    chexpert,
    chexpert_retrieval,
    corpus,
    ct_rate,
    load,
    mimic,
    nih,
    rad_chestct,
    unique,
    vindr,
)
from rayzero.studies.lake import Lake, write_lake
from tests.studies.corpora.test_chexpert import HEADER as CHEXPERT
from tests.studies.corpora.test_mimic import METADATA, dicom_id
from tests.studies.corpora.test_nih import BOXES
from tests.studies.corpora.test_nih import HEADER as NIH
from tests.studies.corpora.test_openi import xml
from tests.studies.corpora.test_padchest import row as padchest_row
from tests.studies.corpora.test_padchest import write as write_padchest
from tests.studies.corpora.trees import write_csv
from tests.studies.films import dataset, encode
from tests.studies.scans import chest, nifti_bytes, npz_bytes

SIDE = 48
BOX = (8, 16, 24, 36)


def film(path: Path, positive: bool, seed: int, side: int = SIDE) -> None:
    """A film as its suffix says: noise, and a bright rectangle where ``positive``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(20, 90, (side, side)).astype(np.uint8)
    if positive:
        x0, y0, x1, y1 = (edge * side // SIDE for edge in BOX)
        pixels[y0:y1, x0:x1] += 120
    if path.suffix in (".dcm", ".dicom"):
        path.write_bytes(encode(dataset(pixels, bits=8, ViewPosition="PA"), uid.ExplicitVRLittleEndian))
    else:
        PillowImage.fromarray(pixels).save(path)


def ingested(name: str, root: Path, out: Path) -> Lake:
    """The tree under ``root`` as a lake, split by split."""
    refs = [one for one in unique(corpus(name).studies(str(root))) if isinstance(one, StudyRef)]
    studies = [load(ref, str(root))[0] for ref in sorted(refs, key=lambda ref: ref.split)]
    return write_lake(str(out), [study for study in studies if study is not None])


def open_i(root: Path) -> None:
    (root / "ecgen-radiology").mkdir(parents=True)
    for number in range(12):
        terms = ["cardiomegaly"] if number % 3 else ["calcified granuloma"]
        (root / f"ecgen-radiology/{number}.xml").write_text(xml(f"CXR{number}", [f"CXR{number}_IM-1-1"], terms))
        film(root / f"CXR{number}_IM-1-1.png", bool(number % 3), number)


def padchest(root: Path) -> None:
    labels = ["['cardiomegaly']", "['unchanged']", "['normal']", "['empyema', 'cardiomegaly']"]
    rows = [
        padchest_row(n, f"s{n}", f"p{n}", "L" if n % 5 == 4 else "PA", "Physician", labels[n % 4]) for n in range(30)
    ]
    write_padchest(root, rows)


def nih_tree(root: Path, community: bool) -> None:
    names = [f"{number:08d}_000.png" for number in range(1, 31)]
    findings = [("Mass", "Hernia|Edema", "No Finding")[number % 3] for number in range(30)]
    rows = [[n, f, 0, k, 57, "M", "PA", 1, 1, 0.1, 0.1] for k, (n, f) in enumerate(zip(names, findings, strict=True))]
    write_csv(root / "Data_Entry_2017_v2020.csv", NIH, rows)
    write_csv(root / "BBox_List_2017.csv", BOXES, [])
    lists = {"train": names[:3], "val": names[3:12], "test": names[12:]}
    if not community:
        lists = {"train_val": names[:12], "test": names[12:]}
    for split, members in lists.items():
        found = {name: finding.split("|") for name, finding in zip(names, findings, strict=True)}
        flags = {n: " " + " ".join(str(int(label in found[n])) for label in nih.LABELS) for n in members}
        (root / f"{split}_list.txt").write_text("".join(n + (flags[n] if community else "") + "\n" for n in members))
    for number, name in enumerate(names):
        film(root / "images" / name, number % 3 == 0, number)


def chexpert_tree(root: Path) -> None:
    def cells(number: int) -> list[object]:
        positive = chexpert_retrieval.FIVE[number % 5]
        return [int(name == positive) for name in chexpert.LABELS]

    write_csv(root / "train.csv", CHEXPERT, [])
    valid = [[f"CheXpert-v1.0/valid/patient{n:05d}/study1/view1_frontal.jpg", "F", 1, "Frontal", "AP", *cells(n)]
             for n in range(10)]  # fmt: skip
    write_csv(root / "valid.csv", CHEXPERT, valid)
    tests = [[f"CheXpert-v1.0/test/patient{n:05d}/study1", *cells(n)] for n in range(100, 120)]
    write_csv(root / "groundtruth.csv", "Study," + ",".join(chexpert.LABELS), tests)
    for number, (path, *_) in enumerate(valid):
        film(root / str(path).removeprefix("CheXpert-v1.0/"), False, number)
    for number, (path, *_) in enumerate(tests):
        for view in ("view1_frontal", "view2_frontal", "view3_lateral"):
            film(root / str(path).removeprefix("CheXpert-v1.0/") / f"{view}.jpg", number % 5 == 0, number)


def chestxdet_tree(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(12):
        name = chestxdet.LABELS[number % 3] if number % 4 else None
        records.append({"file_name": f"{number}.png", "syms": [name] * bool(name), "boxes": [list(BOX)] * bool(name)})
        film(root / f"test_data/{number}.png", bool(name), number)
    (root / "test.json").write_text(json.dumps(records))
    (root / "train.json").write_text("[]")


def vindr_tree(root: Path) -> None:
    labels = ",".join(vindr.LABELS)
    write_csv(root / "annotations/image_labels_train.csv", f"image_id,rad_id,{labels}", [])
    corners = "class_name,x_min,y_min,x_max,y_max"
    write_csv(root / "annotations/annotations_train.csv", f"image_id,rad_id,{corners}", [])
    names = [("Cardiomegaly", "No finding", "ILD")[number % 3] for number in range(12)]
    rows = [[f"t{n}", *(int(label == name) for label in vindr.LABELS)] for n, name in enumerate(names)]
    write_csv(root / "annotations/image_labels_test.csv", f"image_id,{labels.replace('diseases', 'disease')}", rows)
    boxes = [[f"t{n}", name, *BOX] for n, name in enumerate(names) if name != "No finding"]
    write_csv(root / "annotations/annotations_test.csv", f"image_id,{corners}", boxes)
    for number in range(12):
        film(root / f"test/t{number}.dicom", number % 3 != 1, number)


def siim_tree(root: Path) -> None:
    side = 1024
    rows, splits = [], []
    for number in range(8):
        # A block of 100 columns of 200 pixels: the gap to the next column is from the end of the run before.
        runs = " ".join(f"{200 * side + 300 if column == 0 else side - 200} 200" for column in range(100))
        rows.append([f"i{number}", runs if number % 2 else "-1"])
        splits.append([f"i{number}", "validation" if number < 4 else "test"])
        path = root / f"dicom-images-train/a/b/i{number}.dcm"
        film(path, False, number, side)
    write_csv(root / "train-rle.csv", "ImageId, EncodedPixels", rows)
    write_csv(root / "splits.csv", "study_id,split", splits)


def rsna_tree(root: Path, count: int = 9) -> None:
    boxes = [[f"r{n}", *((264, 152, 213, 379, 1) if n % 2 else ("", "", "", "", 0))] for n in range(count)]
    write_csv(root / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", boxes)
    for number in range(count):
        film(root / f"stage_2_train_images/r{number}.dcm", bool(number % 2), number, 1024)
    half = [f"r{n}" for n in range(count // 3, count)]
    listed = [[f"RSNA/{name}.dcm", "264;152;213;379" if int(name[1:]) % 2 else ""] for name in half]
    write_csv(root / "test.csv", "img_path,boxes", listed)
    write_csv(root / "splits.csv", "study_id,split",
              [[f"r{n}", "validation" if n < count // 3 else "test"] for n in range(count)])  # fmt: skip


def rsna_alta_tree(root: Path) -> None:
    write_csv(root / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", [])
    for split, count in (("test", 24), ("val", 6)):
        lines = [f"stage_2_test_images/{split}{n}.dcm {n % 2}" for n in range(count)]
        (root / f"{split}_list.txt").write_text("\n".join(lines))
        for number in range(count):
            film(root / f"stage_2_test_images/{split}{number}.dcm", bool(number % 2), number)


def mscxr_tree(root: Path) -> None:
    header = "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split"
    rows = []
    for number in range(8):
        path = f"files/p10/p1000000{number}/s5000000{number}/{dicom_id(number)}.jpg"
        finding = ("Edema", "Pneumothorax")[number % 2]
        text = f"{finding.lower()} of the right lung {number % 3}"
        x0, y0, x1, y1 = BOX
        split = "val" if number < 2 else "test"
        rows.append([dicom_id(number), finding, text, path, x0, y0, x1 - x0, y1 - y0, SIDE, SIDE, split])
        film(root / path, True, number)
    write_csv(root / "MS_CXR_Local_Alignment_v1.1.0.csv", header, rows)


def medrpg_tree(root: Path) -> None:
    pairs = []
    for number in range(6):
        path = f"files/p10/p1000000{number}/s5000000{number}/{dicom_id(number)}.jpg"
        det = [{"name": f"haze of the right lung {number % 3}", "label": [list(BOX), [0, 0, 2, 2]]}]
        pairs.append({"image": path, "det": det})
        film(root / path, True, number)
    (root / "MS-CXR").mkdir()
    (root / "MS-CXR/test.json").write_text(json.dumps(pairs))


def mimic_tree(root: Path) -> None:
    rows = [
        [dicom_id(n), 10000000 + n, 50000000 + n, "CHEST", "PA", SIDE, SIDE, 21800101, "1", "C", "", "E"]
        for n in range(8)
    ]
    write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, rows)
    split = [[row[0], row[2], row[1], "test"] for row in rows]
    write_csv(root / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split", split)
    write_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", ",".join(("subject_id", "study_id", *mimic.LABELS)), [])
    for number, row in enumerate(rows):
        folder = root / f"files/p10/p{row[1]}"
        film(folder / f"s{row[2]}/{row[0]}.jpg", bool(number % 2), number)
        text = "Small left pleural effusion." if number < 2 else f"Nodule of {number} mm."
        (folder / f"s{row[2]}.txt").write_text(f" FINDINGS: \n \n {text}\n \n IMPRESSION: \n \n {text}\n")


def _single(path: str, name: str) -> list[object]:
    return [path, "F", 60, "Frontal", "AP", *("1.0" if label == name else "" for label in chexpert.LABELS)]


def five_tree(root: Path) -> None:
    rows = []
    for number, name in enumerate(chexpert_retrieval.FIVE * 3):
        path = f"CheXpert-v1.0-small/train/patient{number:05d}/study1/view1_frontal.jpg"
        rows.append([number, *_single(path, name), f"Impression of {name.lower()} {number % 10}."])
        film(root / path.removeprefix("CheXpert-v1.0-small/"), number % 5 == 0, number)
    write_csv(root / "chexpert_5x200.csv", f",{CHEXPERT},Report Impression", rows)


def eight_tree(root: Path) -> None:
    paths = [f"CheXpert-v1.0/train/patient{n:05d}/study1/view1_frontal.jpg" for n in range(40)]
    queries = list(zip(chexpert_retrieval.EIGHT, paths[:8], strict=True))
    write_csv(root / "image-retrieval/query.csv", "Variable,Path", queries)
    named = zip(chexpert_retrieval.EIGHT * 4, paths[8:], strict=True)
    write_csv(root / "image-retrieval/candidate.csv", CHEXPERT, [_single(path, name) for name, path in named])
    for number, path in enumerate(paths):
        film(root / path.removeprefix("CheXpert-v1.0/"), number % 8 == 0, number)


def _table(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def scan(number: int) -> np.ndarray:
    """Hounsfield units of a chest; every other one is denser."""
    noise = np.random.default_rng(number).integers(-20, 20, chest().shape)
    return (chest() + noise + 60 * (number % 2)).astype(np.int16)


def ct_rate_tree(root: Path) -> None:
    """Six scans, two reconstructions each."""
    names = [f"valid_{n}_a_{k}" for n in range(1, 7) for k in (1, 2)]
    for name in names:
        patient = name.split("_a_")[0]
        path = root / f"dataset/valid_fixed/{patient}/{patient}_a/{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(nifti_bytes(scan(int(patient.split("_")[1]))))
    odd = {name: int(name.split("_")[1]) % 2 for name in names}
    reports = [
        {"VolumeName": f"{n}.nii.gz", "ClinicalInformation_EN": "", "Technique_EN": "CT.",
         "Findings_EN": f"Nodule of {n.split('_')[1]} mm.", "Impressions_EN": "Nodule."} for n in names
    ]  # fmt: skip
    _table(root / "dataset/radiology_text_reports/validation_reports.csv", reports)
    labels = [{"VolumeName": f"{n}.nii.gz", **{label: int(k % 3 == odd[n]) for k, label in enumerate(ct_rate.LABELS)}}
              for n in names]  # fmt: skip
    _table(root / "dataset/multi_abnormality_labels/valid_predicted_labels.csv", labels)


def long_tail_labels() -> dict[str, dict[str, int]]:
    """Labels of rare findings for the volumes of ``ct_rate_tree``."""
    return {
        f"valid_{n}_a_{k}": {one: (n + i) % 2 for i, one in enumerate(LONG_TAIL)} for n in range(1, 7) for k in (1, 2)
    }


def rad_tree(root: Path) -> None:
    sources = sorted(
        {source for group in rad_chestct.CT_RATE_CLASSES.values() for source in group} | {"cancer", "cabg"}
    )
    rows = []
    (root / "images").mkdir(parents=True)
    for number in range(8):
        (root / f"images/tst{number:05d}.npz").write_bytes(npz_bytes(ct=scan(number)[::-1]))
        rows.append({"VolumeAcc_DEID": f"tst{number:05d}.npz", "NoteAcc_DEID": f"tst{number:05d}",
                     "orig_orientation": "1,0,0,0,1,0"})  # fmt: skip
    _table(root / "CT_Scan_Metadata_Complete_35747.csv", rows)
    cells = [{"NoteAcc_DEID": row["NoteAcc_DEID"], **{f"{name}*left_lung": (place + k) % 2
              for k, name in enumerate(sources)}} for place, row in enumerate(rows)]  # fmt: skip
    for table, kept in (("imgtrain", cells[:1]), ("imgvalid", cells[:1]), ("imgtest", cells)):
        _table(root / f"{table}_Abnormality_and_Location_Labels.csv", kept)


def inspect_tree(root: Path) -> None:
    (root / "CTPA").mkdir(parents=True)
    tables: dict[str, list[dict[str, Any]]] = {"study_mapping": [], "splits": [], "labels": [], "impressions": []}
    for number in range(8):
        (root / f"CTPA/PE{number}.nii.gz").write_bytes(nifti_bytes(scan(number)))
        key = {"impression_id": str(number)}
        tables["study_mapping"].append({**key, "person_id": number, "image_id": f"PE{number}"})
        tables["splits"].append({**key, "split": "test" if number > 2 else "valid"})
        tables["labels"].append({**key, "pe_positive_nlp": str(bool(number % 2))})
        tables["impressions"].append({**key, "impressions": "Embolism."})
    for name, rows in tables.items():
        _table(root / f"{name}_20250611.tsv", rows, "\t")


TREES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "open-i": ("open-i", open_i),
    "padchest": ("padchest", padchest),
    "padchest20": ("padchest", padchest),
    "chestxray14": ("nih-chestxray14-community", lambda root: nih_tree(root, True)),
    "chestxray14-nih": ("nih-chestxray14", lambda root: nih_tree(root, False)),
    "chexpert": ("chexpert", chexpert_tree),
    "chestxdet10": ("chestx-det10", chestxdet_tree),
    "vindr-cxr": ("vindr-cxr", vindr_tree),
    "siim": ("siim-pneumothorax", siim_tree),
    "rsna-medklip": ("rsna-pneumonia-medklip", rsna_tree),
    "rsna-gloria": ("rsna-pneumonia", rsna_tree),
    "rsna-alta": ("rsna-pneumonia-alta", rsna_alta_tree),
    "ms-cxr": ("ms-cxr", mscxr_tree),
    "ms-cxr-split": ("ms-cxr", mscxr_tree),
    "ms-cxr-medrpg": ("ms-cxr-medrpg", medrpg_tree),
    "mimic-retrieval": ("mimic-cxr-jpg", mimic_tree),
    "chexpert-5x200": ("chexpert-5x200", five_tree),
    "chexpert-8x200": ("chexpert-8x200", eight_tree),
    "ct-rate": ("ct-rate-fixed", ct_rate_tree),
    "ct-rate-lt": ("ct-rate-fixed", ct_rate_tree),
    "ct-rate-retrieval": ("ct-rate-fixed", ct_rate_tree),
    "rad-chestct": ("rad-chestct", rad_tree),
    "rad-chestct-lt": ("rad-chestct", rad_tree),
    "inspect": ("inspect", inspect_tree),
}
"""Of each benchmark: its corpus, and what writes the tree."""


def main(folder: Path) -> None:
    """Write every miniature into ``folder``."""
    for name, write in dict(TREES.values()).items():
        with tempfile.TemporaryDirectory() as root:
            tree = Path(root) / "tree"
            tree.mkdir()
            write(tree)
            lake = ingested(name, tree, folder / name)
        print(f"{sum(lake.counts['split'].values()):4} studies  {lake.url}")
    _table(folder / "ct-rate-lt.csv", [{"VolumeName": name, **row} for name, row in long_tail_labels().items()])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
