"""MIMIC-CXR, its JPG release and MS-CXR, in miniature."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from rayzero.reports.sections import parse_report
from rayzero.studies.corpora import corpus, load
from rayzero.studies.corpora.mimic import LABELS
from rayzero.studies.errors import CorpusError
from tests.studies.corpora.trees import loaded, refs_of, write_csv, write_image
from tests.studies.films import film_bytes

METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
REPORT = "\n".join(
    (
        "                                 FINAL REPORT",
        " EXAMINATION:  CHEST (PA AND LAT)",
        " ",
        " INDICATION:  ___-year-old with cough // pneumonia?",
        " ",
        " FINDINGS: ",
        " ",
        " The heart is normal in size.  There is a small left",
        " pleural effusion.",
        " ",
        " IMPRESSION: ",
        " ",
        " Small left pleural effusion.",
        "",
    )
)


def dicom_id(number: int) -> str:
    return "-".join(f"{number:08x}" for _ in range(5))


def image_row(
    number: int, patient: int, study: int, view: str, date: int, time: str, meaning: str = ""
) -> list[object]:
    return [dicom_id(number), patient, study, "CHEST", view, 32, 24, date, time, "CHEST", meaning, "Erect"]


@pytest.fixture
def jpg(tmp_path: Path) -> Path:
    """Patient 10000001 with three studies whose ids run against time, and one of patient 10000002."""
    rows = [
        image_row(1, 10000001, 50000009, "PA", 21800506, "80556.875"),
        image_row(2, 10000001, 50000009, "LATERAL", 21800506, "80601"),
        image_row(3, 10000001, 50000001, "", 21800506, "213014.53100000002", "antero-posterior"),
        image_row(4, 10000001, 50000005, "nan", 21810101, "5.5"),
        image_row(5, 10000002, 50000020, "AP", 21500101, "120000"),
    ]
    write_csv(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, rows)
    split = [[row[0], row[2], row[1], "test" if row[1] == 10000002 else "train"] for row in rows]
    write_csv(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split", split)
    for labeller, effusion in (("chexpert", "1.0"), ("negbio", "-1.0")):
        cells = [{"Pleural Effusion": effusion, "Edema": "0.0"}.get(name, "") for name in LABELS]
        header = ",".join(("subject_id", "study_id", *LABELS))
        write_csv(tmp_path / f"mimic-cxr-2.0.0-{labeller}.csv.gz", header, [[10000001, 50000009, *cells]])
    for row in rows:
        folder = tmp_path / f"files/p{str(row[1])[:2]}/p{row[1]}"
        write_image(folder / f"s{row[2]}/{row[0]}.jpg", seed=int(str(row[0])[:8], 16))
        (folder / f"s{row[2]}.txt").write_text(REPORT)
    return tmp_path


def test_a_study_holds_its_views_report_labels_and_time(jpg: Path) -> None:
    refs, refused = refs_of("mimic-cxr-jpg", jpg)
    assert refused == []
    assert sorted(refs) == ["50000001", "50000005", "50000009", "50000020"]
    study = loaded(refs["50000009"], jpg)
    assert (study.patient_id, study.split, study.corpus) == ("10000001", "train", "mimic-cxr-jpg")
    assert [(image.image_id, image.view) for image in study.images] == [
        (dicom_id(1), "frontal"),
        (dicom_id(2), "lateral"),
    ]
    assert study.labels == {"Pleural Effusion": 1, "Edema": 0}
    assert study.report.findings == "The heart is normal in size. There is a small left pleural effusion."
    assert study.report.impression == "Small left pleural effusion."
    assert "There is pleural effusion on the left" in [sentence.text for sentence in study.sentences]
    assert refs["50000020"].split == "test"


def test_trap_04_study_time_lost_its_zeros_and_ids_carry_no_order(jpg: Path) -> None:
    refs, _ = refs_of("mimic-cxr-jpg", jpg)
    assert refs["50000009"].study_time == datetime(2180, 5, 6, 8, 5, 56, 875000)
    assert refs["50000001"].study_time == datetime(2180, 5, 6, 21, 30, 14, 531000)
    assert refs["50000005"].study_time == datetime(2181, 1, 1, 0, 0, 5, 500000)
    assert {name: ref.prior_study_id for name, ref in refs.items()} == {
        "50000009": None,
        "50000001": "50000009",
        "50000005": "50000001",
        "50000020": None,
    }


def test_trap_04_blank_and_nan_views_fall_back_to_the_view_code(jpg: Path) -> None:
    refs, _ = refs_of("mimic-cxr-jpg", jpg)
    assert [loaded(refs[name], jpg).images[0].view for name in ("50000001", "50000005")] == ["frontal", "unknown"]


def test_trap_04_dicom_and_jpg_releases_share_ids_and_not_grey_values(jpg: Path) -> None:
    for path in list(jpg.rglob("*.jpg")):
        path.with_suffix(".dcm").write_bytes(film_bytes(ViewPosition=""))
        path.unlink()
    dicom, _ = refs_of("mimic-cxr", jpg)
    other, _ = refs_of("mimic-cxr-jpg", jpg)
    assert [f.image_id for ref in dicom.values() for f in ref.files] == [
        f.image_id for ref in other.values() for f in ref.files
    ]
    study = loaded(dicom["50000009"], jpg)
    assert [(image.view, image.bits) for image in study.images] == [("frontal", 12), ("lateral", 12)]


def test_the_labeller_is_that_of_the_name_and_radiologists_outrank_it(jpg: Path) -> None:
    refs, _ = refs_of("mimic-cxr-jpg-negbio", jpg)
    assert refs["50000009"].labels == {"Pleural Effusion": -1, "Edema": 0}
    write_csv(jpg / "mimic-cxr-2.1.0-test-set-labeled.csv", "study_id,Edema,Pneumonia", [[50000009, 1, 0]])
    refs, _ = refs_of("mimic-cxr-jpg", jpg)
    assert refs["50000009"].labels == {"Pleural Effusion": 1, "Edema": 1, "Pneumonia": 0}


def test_what_radiologists_leave_blank_is_not_the_labellers_again(jpg: Path) -> None:
    name, header = "mimic-cxr-2.1.0-test-set-labeled.csv", "study_id,Edema,Pleural Effusion,Pneumonia"
    write_csv(jpg / name, header, [[50000009, "", "", 1], [50000001, "", "", ""]])
    refs, _ = refs_of("mimic-cxr-jpg", jpg)
    assert refs["50000009"].labels == {"Pneumonia": 1}
    assert refs["50000001"].labels == {}


def test_official_sections_outrank_the_files(jpg: Path) -> None:
    header = "study,impression,findings,last_paragraph,comparison"
    rows = [["s50000009", "No effusion.", "Clear.\nLungs.", "", ""], ["s50000001", "", "", "Normal chest.", ""]]
    write_csv(jpg / "mimic_cxr_sectioned.csv", header, rows)
    refs, _ = refs_of("mimic-cxr-jpg", jpg)
    reports = {name: loaded(ref, jpg).report for name, ref in refs.items()}
    assert (reports["50000009"].findings, reports["50000009"].impression) == ("Clear.\nLungs.", "No effusion.")
    assert (reports["50000001"].findings, reports["50000001"].impression) == ("Normal chest.", "")
    # The table lacks this study: its file speaks, and when it is gone that is on record.
    assert reports["50000005"].impression == "Small left pleural effusion."
    (jpg / "files/p10/p10000001/s50000005.txt").unlink()
    assert [q.stage for q in load(refs["50000005"], str(jpg))[1]] == ["report"]


def test_bad_rows_are_on_record_with_their_place(jpg: Path) -> None:
    rows = [
        image_row(1, 10000001, 50000009, "PA", 21800506, "80556.875"),
        image_row(2, 10000001, 50000009, "PA", 21801399, "80556"),
        image_row(3, 10000001, 50000001, "PA", 21800506, "noon"),
        image_row(4, 10000002, 50000009, "PA", 21800506, "80556"),
        image_row(99, 10000002, 50000020, "PA", 21800506, "80556"),
    ]
    write_csv(jpg / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, rows)
    refs, refused = refs_of("mimic-cxr-jpg", jpg)
    assert list(refs) == ["50000009"]
    assert [q.file for q in refused] == [f"mimic-cxr-2.0.0-metadata.csv.gz, row {n}" for n in (2, 3, 4, 5)]
    reasons = " | ".join(q.reason for q in refused)
    for words in ("21801399", "StudyTime is 'noon'", "differs from others of its study", "does not list the image"):
        assert words in reasons


def test_a_missing_table_is_named(jpg: Path) -> None:
    (jpg / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(CorpusError, match=r"no mimic-cxr-2\.0\.0-split\.csv\.gz"):
        list(corpus("mimic-cxr-jpg").studies(str(jpg)))


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        (" FINDINGS: one\n two.\n \n IMPRESSON: three.\n", "one two.", "three."),
        (" PA AND LATERAL VIEWS OF THE CHEST: one.\n", "one.", ""),
        (" FINDINGS: lungs clear.\n BONES: intact.\n IMPRESSION:\n", "lungs clear. BONES: intact.", ""),
        (
            " IMPRESSION: addendum.\n______________________________\n \n FINAL REPORT\n IMPRESSION: report.\n",
            "",
            "report.",
        ),
        (" EXAMINATION: CHEST (PORTABLE AP)\n \n INDICATION: cough\n \n Lungs are\n clear.\n", "Lungs are clear.", ""),
        (" CONCLUSION: done.\n", "", "done."),
        (" FINDINGS: one.\n PORTABLE CHEST: two.\n", "one. PORTABLE CHEST: two.", ""),
        (" RECOMMENDATION(S): none.\n NOTIFICATION: by phone.\n IMPRESSION: three.\n", "", "three."),
        ("", "", ""),
    ],
)
def test_reports_by_their_headings(text: str, findings: str, impression: str) -> None:
    report = parse_report(text)
    assert (report.findings, report.impression, report.text) == (findings, impression, text)


@pytest.mark.parametrize(
    "heading",
    ["IMPRESSON", "IMPRRESSION", "IMORESSION", "IMPRESSOIN", "IMPRSSION", "MPRESSION", "IMPESSION", "IMPRESSIO",
     "CONCUSION", "FINDINGS/ IMPRESSION"],
)  # fmt: skip
def test_misspelt_impressions(heading: str) -> None:
    assert parse_report(f" INDICATION: cough.\n {heading}: text.\n").impression == "text."


@pytest.mark.parametrize("heading", ["FINDINS", "FINDINDGS", "FINDGINGS", "FINDNGS", "FINIDNGS", "REFERENCE FINDINGS"])
def test_misspelt_findings(heading: str) -> None:
    assert parse_report(f" {heading}: text.\n IMPRESSION: other.\n").findings == "text."


@pytest.mark.parametrize(
    "heading",
    ["INDICATION", "IDICATION", "TECHNIQUE", "COMPARISON", "COMPARISION", "HISTORY", "WET READ", "ADDENDUM", "PFI",
     "NOTIFICATION", "TYPE OF EXAMINATION", "REASON FOR EXAM", "REFERENCE EXAM", "RECOMMENDATIONS", "COMMENT"],
)  # fmt: skip
def test_other_headings_are_neither(heading: str) -> None:
    report = parse_report(f" {heading}: text.\n IMPRESSION: other.\n")
    assert (report.findings, report.impression) == ("", "other.")


MSCXR = "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split"


def msc_row(number: int, study: int, phrase: str, box: tuple[int, ...], **changes: object) -> list[object]:
    path = f"files/p10/p10000001/s{study}/{dicom_id(number)}.jpg"
    row = dict(zip(MSCXR.split(","), [dicom_id(number), "Edema", phrase, path, *box, 24, 32, "val"], strict=True))
    return list({**row, **changes}.values())


def test_ms_cxr_phrases_keep_all_their_boxes(jpg: Path) -> None:
    rows = [
        msc_row(1, 50000009, "mild edema, left", (2, 3, 10, 8)),
        msc_row(1, 50000009, "mild edema, left", (12, 3, 10, 8)),
        msc_row(1, 50000009, "nothing", (2, 3, 0, 8)),
        msc_row(3, 50000001, "haze", (1, 1, 4, 4), category_name="Haze"),
        msc_row(3, 50000001, "haze", (1, 1, 4, 4), dicom_id="other"),
    ]
    write_csv(jpg / "MS_CXR_Local_Alignment_v1.1.0.csv", MSCXR, rows)
    refs, refused = refs_of("ms-cxr", jpg)
    study = loaded(refs["50000009"], jpg)
    assert (study.patient_id, study.split, study.labels) == ("10000001", "validation", {"Edema": 1})
    assert [(r.phrase, r.finding, r.box) for r in study.regions] == [
        ("mild edema, left", "Edema", (2, 3, 12, 11)),
        ("mild edema, left", "Edema", (12, 3, 22, 11)),
    ]
    assert [q.file for q in refused] == [f"MS_CXR_Local_Alignment_v1.1.0.csv, row {n}" for n in (3, 4, 5)]


def test_ms_cxr_boxes_do_not_fit_a_resized_copy(jpg: Path) -> None:
    rows = [msc_row(1, 50000009, "mild edema", (2, 3, 10, 8), image_width=2544, image_height=3056)]
    write_csv(jpg / "MS_CXR_Local_Alignment_v1.1.0.csv", MSCXR, rows)
    refs, _ = refs_of("ms-cxr", jpg)
    study, lost = load(refs["50000009"], str(jpg))
    assert study is not None
    assert study.regions == ()
    assert "measured on 3056x2544" in lost[0].reason


def test_ms_cxr_of_the_first_release_has_no_split(jpg: Path) -> None:
    row = msc_row(1, 50000009, "mild edema", (2, 3, 10, 8))[:-1]
    write_csv(jpg / "MS_CXR_Local_Alignment_v1.0.0.csv", MSCXR.removesuffix(",split"), [row])
    refs, _ = refs_of("ms-cxr", jpg)
    assert refs["50000009"].split == "test"
    shutil.copy(jpg / "MS_CXR_Local_Alignment_v1.0.0.csv", jpg / "MS_CXR_Local_Alignment_v1.1.0.csv")
    with pytest.raises(CorpusError, match=r"both .* keep one"):
        refs_of("ms-cxr", jpg)


def test_pairs_of_medrpg_have_their_first_box_alone(jpg: Path) -> None:
    path = f"files/p10/p10000001/s50000009/{dicom_id(1)}.jpg"
    records = [
        {"image": path, "det": [{"name": "mild edema", "label": [[2, 3, 12, 11], [0, 0, 4, 4]]}, {"name": "second"}]},
        {"image": path, "det": [{"name": "small effusion, left", "label": [[1, 1, 5, 6.5]]}]},
        {"image": path, "det": [{"name": "nothing", "label": []}]},
        {"image": "elsewhere.jpg", "det": [{"name": "haze", "label": [[1, 1, 5, 6]]}]},
        {"image": path, "det": [{"name": "flat", "label": [[5, 1, 5, 6]]}]},
    ]
    (jpg / "MS-CXR").mkdir()
    (jpg / "MS-CXR/test.json").write_text(json.dumps(records))
    refs, refused = refs_of("ms-cxr-medrpg", jpg)
    study = loaded(refs["50000009"], jpg)
    assert (study.patient_id, study.split, study.labels) == ("10000001", "test", {})
    assert [(r.phrase, r.box) for r in study.regions] == [
        ("mild edema", (2, 3, 12, 11)),
        ("small effusion, left", (1, 1, 5, 6.5)),
    ]
    assert [q.file for q in refused] == [f"MS-CXR/test.json, entry {n}" for n in (3, 4, 5)]
    (jpg / "MS-CXR/test.json").write_text("{}")
    with pytest.raises(CorpusError, match="holds a dict; a list of images is needed"):
        refs_of("ms-cxr-medrpg", jpg)
