"""Open-I in miniature, and its 3,955 published reports."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayzero.studies.corpora import corpus, load
from rayzero.studies.corpora.openi import LABELS, labels_of
from rayzero.studies.errors import CorpusError
from tests.studies.corpora.trees import loaded, real_file, refs_of, write_csv, write_image
from tests.studies.films import film_bytes

POSITIVE = {
    "Atelectasis": (364, 711), "Cardiomegaly": (258, 493), "Effusion": (179, 346), "Infiltration": (92, 174),
    "Mass": (6, 13), "Nodule": (82, 157), "Pneumonia": (82, 158), "Pneumothorax": (21, 44), "Edema": (72, 144),
    "Emphysema": (97, 193), "Fibrosis": (21, 39), "Pleural_Thickening": (35, 68), "Hernia": (51, 97),
    "Fracture": (97, 189), "Opacity": (421, 819), "Lesion": (3, 7), "Calcified Granuloma": (218, 416),
    "Granuloma": (400, 781),
}  # fmt: skip
"""Reports and images, as the datasets spec counts them."""


def xml(uid: str, images: list[str], terms: list[str], findings: str = "", impression: str = "") -> str:
    terms_xml = "".join(f"<automatic>{term}</automatic>" for term in terms)
    images_xml = "".join(f'<parentImage id="{image}"><caption>Xray Chest</caption></parentImage>' for image in images)
    return f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="{uid}"/><licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
<MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION"/>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>Cardiomegaly/mild</major>{terms_xml}</MeSH>{images_xml}</eCitation>"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "ecgen-radiology"
    folder.mkdir()
    (folder / "1.xml").write_text(
        xml(
            "CXR1",
            ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"],
            ["calcified granuloma", "Pericardial Effusion"],
            "The XXXX is clear. Small left pleural effusion.",
            "Effusion.",
        )
    )
    (folder / "2.xml").write_text(xml("CXR2", ["CXR2_IM-0652-1001-0001"], ["atelectases"], "", "Clear."))
    (folder / "10.xml").write_text(xml("CXR10", [], [], "Clear."))
    (folder / "11.xml").write_text("<eCitation>")
    for name in ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001", "CXR2_IM-0652-1001-0001"):
        write_image(tmp_path / f"{name}.png")
    projections = [[1, "1_IM-0001-3001.dcm.png", "Frontal"], [1, "1_IM-0001-4001.dcm.png", "Lateral"]]
    write_csv(tmp_path / "indiana_projections.csv", "uid,filename,projection", projections)
    return tmp_path


def test_a_report_with_its_films(root: Path) -> None:
    refs, _ = refs_of("open-i", root)
    assert list(refs) == ["CXR1", "CXR2", "CXR10"]
    study = loaded(refs["CXR1"], root)
    assert (study.patient_id, study.split) == ("CXR1", "test")
    assert [(image.image_id, image.view) for image in study.images] == [
        ("CXR1_1_IM-0001-3001", "frontal"),
        ("CXR1_1_IM-0001-4001", "lateral"),
    ]
    assert study.report.impression == "Effusion."
    assert study.report.text.startswith("COMPARISON: None.\n\nFINDINGS:")


def test_trap_08_labels_are_substrings_of_the_automatic_terms(root: Path) -> None:
    refs, _ = refs_of("open-i", root)
    assert [n for n, v in refs["CXR1"].labels.items() if v] == ["Effusion", "Calcified Granuloma", "Granuloma"]
    assert [n for n, v in refs["CXR2"].labels.items() if v] == ["Atelectasis"]
    assert labels_of(["Pleural Thickening", "infiltrate"]) == ["Infiltration", "Pleural_Thickening"]


def test_trap_08_empty_sections_and_scrub_tokens(root: Path) -> None:
    refs, _ = refs_of("open-i", root)
    study = loaded(refs["CXR1"], root)
    assert "XXXX" in study.report.findings
    assert [s.text for s in study.sentences if "xxxx" in s.text.lower()] == []
    assert loaded(refs["CXR2"], root).report.findings == ""


def test_trap_08_reports_without_images_are_on_record(root: Path) -> None:
    refs, refused = refs_of("open-i", root)
    study, lost = load(refs["CXR10"], str(root))
    assert study is None
    assert lost[0].reason == "the study lists no image"
    assert [(q.file, q.stage) for q in refused] == [("ecgen-radiology/11.xml", "table")]


@pytest.mark.parametrize("path", ["1/1_IM-0001-3001.dcm", "images/1_IM-0001-3001.dcm.png", "CXR1_1_IM-0001-3001.png"])
def test_trap_08_three_shapes_of_ids_find_their_files(root: Path, path: str) -> None:
    (root / "CXR1_1_IM-0001-3001.png").unlink()
    if path.endswith(".dcm"):
        (root / path).parent.mkdir()
        (root / path).write_bytes(film_bytes(ViewPosition="PA"))
    else:
        write_image(root / path)
    refs, _ = refs_of("open-i", root)
    assert refs["CXR1"].files[0].path == path
    assert loaded(refs["CXR1"], root).images[0].view == "frontal"
    assert refs["CXR2"].files[0].path == "CXR2_IM-0652-1001-0001.png"


def test_no_reports_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="neither NLMCXR_reports"):
        list(corpus("open-i").studies(str(tmp_path)))
    (tmp_path / "NLMCXR_reports.tgz").write_bytes(b"\x1f\x8b\x08 cut")
    with pytest.raises(CorpusError, match=r"NLMCXR_reports\.tgz is damaged"):
        list(corpus("open-i").studies(str(tmp_path)))


def test_trap_08_the_published_reports(tmp_path: Path) -> None:
    shutil.copy(real_file("NLMCXR_reports.tgz"), tmp_path)
    refs, refused = refs_of("open-i", tmp_path)
    assert refused == []
    pictured = [ref for ref in refs.values() if ref.files]
    assert (len(refs), len(pictured), sum(len(ref.files) for ref in pictured)) == (3_955, 3_851, 7_470)
    assert len({file.image_id for ref in pictured for file in ref.files}) == 7_470
    counts = {
        name: (
            sum(ref.labels[name] for ref in pictured),
            sum(ref.labels[name] * len(ref.files) for ref in pictured),
        )
        for name in LABELS
    }
    assert counts == POSITIVE
    assert sum(not any(ref.labels.values()) for ref in pictured) == 2_429
    reports = [ref.report for ref in refs.values()]
    assert sum(bool(r.findings and r.impression) for r in reports if not isinstance(r, str)) == 3_419
    assert sum(not (r.findings or r.impression) for r in reports if not isinstance(r, str)) == 28
    assert sum("XXXX" in r.findings + r.impression for r in reports if not isinstance(r, str)) == 1_855
