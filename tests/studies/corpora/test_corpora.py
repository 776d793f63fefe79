"""Corpora: tables become references, references become studies, and what does not is on record."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from rayzero.studies.corpora import FileRef, StudyRef, corpus, load, unique
from rayzero.studies.corpora.base import REPORT_BYTES
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from tests.studies.films import film_bytes
from tests.studies.scans import SHAPE, chest, series, zipped


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _row(study_id: str, **values: str) -> dict[str, str]:
    base = {"study_id": study_id, "patient_id": "p1", "split": "train", "study_time": "", "prior_study_id": ""}
    return {**base, **values}


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    """Two studies of one patient: labels for both, a region on the first one's frontal film."""
    for name in ("s1", "s2"):
        folder = tmp_path / "files" / "p1" / name
        folder.mkdir(parents=True)
        (folder / "pa.dcm").write_bytes(film_bytes(ViewPosition="PA"))
        (folder / "lateral.dcm").write_bytes(film_bytes(ViewPosition="LL"))
        (folder / "report.txt").write_text("FINDINGS: No pneumothorax.\n\nIMPRESSION: Cardiomegaly.")
    later = _row("s2", study_time="2021-03-04T05:06:07", prior_study_id="s1")
    _table(tmp_path / "studies.csv", [_row("s1", study_time="2020-03-04T05:06:07"), later])
    _table(tmp_path / "labels.csv", [{"study_id": s, "cardiomegaly": 1, "pneumothorax": 0} for s in ("s1", "s2")])
    region = {
        "study_id": "s1",
        "file": "files/p1/s1/pa.dcm",
        "view": "frontal",
        "finding": "cardiomegaly",
        "phrase": "There is cardiomegaly.",
        "box": [1, 2, 3, 4],
        "rle": {"size": [64, 96], "counts": [1, 2, 6141]},
    }
    (tmp_path / "regions.jsonl").write_text(json.dumps(region) + "\n")
    return tmp_path


def _refs(name: str, root: Path) -> tuple[list[StudyRef], list[Quarantined]]:
    items = list(unique(corpus(name).studies(str(root))))
    refs = [item for item in items if isinstance(item, StudyRef)]
    return refs, [item for item in items if isinstance(item, Quarantined)]


def test_phantom_studies_load_whole(phantom: Path) -> None:
    refs, refused = _refs("phantom", phantom)
    assert (len(refs), refused) == (2, [])
    study, lost = load(refs[0], str(phantom))
    assert study is not None
    assert lost == []
    assert [(i.image_id, i.view) for i in study.images] == [("s1/pa", "frontal"), ("s1/lateral", "lateral")]
    assert study.labels == {"cardiomegaly": 1, "pneumothorax": 0}
    assert [s.text for s in study.sentences] == ["There is no pneumothorax", "There is cardiomegaly"]
    (region,) = study.regions
    assert (region.image_id, region.box) == ("s1/pa", (1, 2, 3, 4))
    assert region.mask is not None
    assert region.mask.array().sum() == 2
    assert (refs[1].prior_study_id, refs[1].study_time) == ("s1", datetime(2021, 3, 4, 5, 6, 7))


def test_unreadable_image_is_on_record_and_the_study_kept(phantom: Path) -> None:
    (phantom / "files/p1/s1/pa.dcm").write_text("not a film")
    study, lost = load(_refs("phantom", phantom)[0][0], str(phantom))
    assert study is not None
    assert [i.image_id for i in study.images] == ["s1/lateral"]
    assert [(q.stage, q.file) for q in lost] == [("open", "files/p1/s1/pa.dcm"), ("region", "s1/pa")]
    assert "plain text" in lost[0].reason


def test_study_without_a_readable_image_is_on_record(phantom: Path) -> None:
    for film in (phantom / "files/p1/s1").glob("*.dcm"):
        film.unlink()
    study, lost = load(_refs("phantom", phantom)[0][0], str(phantom))
    assert study is None
    assert [q.stage for q in lost] == ["open", "open", "study"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"])
def test_missing_or_undecodable_report_leaves_an_empty_one(phantom: Path, content: bytes | None) -> None:
    path = phantom / "files/p1/s1/report.txt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    study, lost = load(_refs("phantom", phantom)[0][0], str(phantom))
    assert study is not None
    assert study.report.text == ""
    assert study.sentences == ()
    assert [q.stage for q in lost] == ["report"]


def test_bad_rows_are_on_record(phantom: Path) -> None:
    rows = [_row("s1"), _row("s1"), _row("s2", split="dev"), _row("s3", study_time="soon"), _row("")]
    _table(phantom / "studies.csv", rows)
    (phantom / "regions.jsonl").write_text('{"study_id": "s1"}\nnonsense\n{"study_id": "s8"}\n')
    refs, refused = _refs("phantom", phantom)
    assert [ref.study_id for ref in refs] == ["s1"]
    reasons = " | ".join(q.reason for q in refused)
    assert "occurs twice" in reasons
    assert "split is 'dev'" in reasons
    assert "soon" in reasons
    assert "blank" in reasons
    assert sum("is not a region" in q.reason for q in refused) == 3


def test_labels_of_an_unknown_study_are_on_record(phantom: Path) -> None:
    _table(phantom / "studies.csv", [_row("s1")])
    _, refused = _refs("phantom", phantom)
    assert [(q.study_id, q.file) for q in refused] == [("s2", "labels.csv")]


def test_folder_reads_reports_from_the_table_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.dcm").write_bytes(film_bytes())
    (tmp_path / "two.dcm").write_bytes(film_bytes(10))
    (tmp_path / "r.txt").write_text("Small left pleural effusion.")
    rows = [
        {"study_id": "s1", "patient_id": "p", "split": "train", "images": "a/one.dcm; two.dcm", "report": "r.txt"},
        {"study_id": "s2", "patient_id": "p", "split": "test", "images": "two.dcm", "report": "No pneumothorax."},
        {"study_id": "s3", "patient_id": "p", "split": "test", "images": "", "report": ""},
    ]
    _table(tmp_path / "studies.csv", rows)
    refs, _ = _refs("folder", tmp_path)
    first, second, third = (load(ref, str(tmp_path))[0] for ref in refs)
    assert first is not None
    assert [i.image_id for i in first.images] == ["s1/a/one", "s1/two"]
    assert [s.text for s in first.sentences] == ["There is pleural effusion on the left"]
    assert second is not None
    assert [s.text for s in second.sentences] == ["There is no pneumothorax"]
    assert third is None


def test_folder_ids_are_paths_less_the_extension_of_an_image(tmp_path: Path) -> None:
    images = [
        "1.2.840.1;1.2.840.2",
        "a/ONE.DCM;b.c/one.jpeg;ct/",
        "v.nii.gz;w.nii;x.tar",
        "a.dcm;a.png",
        "./c.dcm;c.dcm",
    ]
    rows = [{"study_id": f"s{n}", "patient_id": "p", "split": "train", "images": text} for n, text in enumerate(images)]
    _table(tmp_path / "studies.csv", rows)
    refs, refused = _refs("folder", tmp_path)
    assert [[file.image_id for file in ref.files] for ref in refs] == [
        ["s0/1.2.840.1", "s0/1.2.840.2"],
        ["s1/a/ONE", "s1/b.c/one", "s1/ct"],
        ["s2/v", "s2/w", "s2/x.tar"],
    ]
    assert [(q.study_id, q.reason) for q in refused] == [
        ("s3", "a.dcm and a.png are two files of one image id, s3/a; rename one"),
        ("s4", "./c.dcm and c.dcm are two files of one image id, s4/c; rename one"),
    ]


def test_folder_reads_views_labels_and_boxes(tmp_path: Path) -> None:
    for name in ("one.dcm", "two.dcm"):
        (tmp_path / name).write_bytes(film_bytes())
    base = {"patient_id": "p", "split": "train"}
    rows = [
        {"study_id": "s1", **base, "images": "one.dcm;two.dcm", "views": "frontal; lateral"},
        {"study_id": "s2", **base, "images": "one.dcm", "views": "sideways"},
        {"study_id": "s3", **base, "images": "one.dcm", "views": "frontal;lateral"},
    ]
    _table(tmp_path / "studies.csv", rows)
    labels = [{"study_id": s, "edema": value, "mass": ""} for s, value in (("s1", "1"), ("s9", "1"), ("s1", "0"))]
    _table(tmp_path / "labels.csv", labels)
    corners = {"x0": 1, "y0": 2, "x1": 30, "y1": 40}
    boxes = [
        {"image": "one.dcm", "finding": "edema", **corners, "phrase": "hazy"},
        {"image": "one.dcm", "finding": "edema", **corners, "x1": 0, "phrase": ""},
        {"image": "six.dcm", "finding": "edema", **corners, "phrase": ""},
    ]
    _table(tmp_path / "boxes.csv", boxes)
    refs, refused = _refs("folder", tmp_path)
    (ref,) = refs
    study, lost = load(ref, str(tmp_path))
    assert study is not None
    assert lost == []
    assert [image.view for image in study.images] == ["frontal", "lateral"]
    assert study.labels == {"edema": 1}
    assert [(r.image_id, r.phrase, r.box) for r in study.regions] == [("s1/one", "hazy", (1, 2, 30, 40))]
    assert [q.file for q in refused] == [
        "labels.csv, row 3",
        "boxes.csv, row 2",
        "studies.csv, row 2",
        "studies.csv, row 3",
        "labels.csv, row 2",
        "boxes.csv, row 3",
    ]


def _ref(path: str, report_file: str = "") -> StudyRef:
    files = (FileRef(image_id="i", path=path),)
    return StudyRef(study_id="s", patient_id="p", corpus="folder", split="train", files=files, report_file=report_file)


def _failing(code: int) -> Callable[..., Any]:
    """A method of a file system that raises the OSError of ``code``."""

    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(
    "code",
    [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENOMEM],
    ids=errno.errorcode.__getitem__,
)
@pytest.mark.parametrize(("method", "path"), [("cat_file", "a.dcm"), ("ls", "ct/")])
def test_a_disk_that_fails_for_a_while_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, method: str, path: str
) -> None:
    (tmp_path / "a.dcm").write_bytes(film_bytes())
    (tmp_path / "ct").mkdir()
    monkeypatch.setattr(LocalFileSystem, method, _failing(code))
    with pytest.raises(CorpusError, match=r"cannot be read now .* run this again later"):
        load(_ref(path), str(tmp_path))


@pytest.mark.parametrize(("method", "path"), [("cat_file", "a.dcm"), ("ls", "ct/")])
@pytest.mark.parametrize(("code", "remedy"), [(errno.EACCES, "the clock is right"), (errno.EIO, "again later")])
def test_a_store_that_refuses_a_request_is_not_the_files_fault(
    monkeypatch: pytest.MonkeyPatch, code: int, remedy: str, method: str, path: str
) -> None:
    """403 for every file is an expired key or a clock that is off; 500 and 503 are the store's own."""
    fs = MemoryFileSystem()
    fs.pipe_file("/refused/a.dcm", film_bytes())
    monkeypatch.setattr(MemoryFileSystem, method, _failing(code))
    with pytest.raises(CorpusError, match=f"cannot be read now .*{remedy}"):
        load(_ref(path), "memory://refused")


@pytest.mark.parametrize(("method", "path"), [("cat_file", "a.dcm"), ("ls", "ct/")])
def test_a_file_that_may_not_be_read_on_a_disk_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    (tmp_path / "a.dcm").write_bytes(film_bytes())
    monkeypatch.setattr(LocalFileSystem, method, _failing(errno.EACCES))
    study, lost = load(_ref(path), str(tmp_path))
    assert study is None
    assert (lost[0].file, lost[0].stage) == (path, "open")
    assert "cannot be read: Permission denied" in lost[0].reason


def test_a_series_without_its_folder_is_on_record(tmp_path: Path) -> None:
    assert load(_ref("ct/"), str(tmp_path))[1][0].reason == "the folder does not exist"


def test_the_mark_of_a_folder_on_a_store_is_no_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    fs, listed = MemoryFileSystem(), MemoryFileSystem.ls
    for name, data in series(chest()).items():
        fs.pipe_file(f"/marked/ct/{name}", data)

    def with_mark(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        return [{"name": f"{path}/", "size": 0, "type": "file"}, *listed(self, path, **options)]

    monkeypatch.setattr(MemoryFileSystem, "ls", with_mark)
    study, lost = load(_ref("ct/"), "memory://marked")
    assert lost == []
    assert study is not None
    assert study.images[0].shape == SHAPE


@pytest.mark.parametrize("packed", [True, False])
def test_names_of_slices_stay_out_of_the_record(tmp_path: Path, packed: bool) -> None:
    files = {f"ROE_RICHARD_{name}": data for name, data in series(chest()).items()}
    files["ROE_RICHARD_003.dcm"] = b"no slice"
    (tmp_path / "ct").mkdir()
    for name, data in files.items():
        (tmp_path / "ct" / name).write_bytes(data)
    (tmp_path / "ct.zip").write_bytes(zipped(files))
    _, lost = load(_ref("ct.zip" if packed else "ct/"), str(tmp_path))
    assert lost[0].reason.startswith("file 4 of the series: ")
    assert "ROE" not in repr(lost)


def test_a_file_too_long_for_a_report_is_on_record(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(film_bytes())
    (tmp_path / "r.txt").write_text("x" * (REPORT_BYTES + 1))
    study, lost = load(_ref("a.dcm", "r.txt"), str(tmp_path))
    assert study is not None
    assert study.report.text == ""
    assert [(q.stage, q.file, q.reason) for q in lost] == [
        ("report", "r.txt", "a file of 1,048,577 bytes is beyond 1,048,576")
    ]


@pytest.mark.parametrize("path", ["../secret.dcm", "/etc/passwd", "a/../../secret.dcm"])
def test_paths_stay_inside_the_corpus(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.dcm").write_bytes(film_bytes())
    root = tmp_path / "corpus"
    root.mkdir()
    files = (FileRef(image_id="i", path=path),)
    ref = StudyRef(study_id="s", patient_id="p", corpus="folder", split="train", files=files)
    study, lost = load(ref, str(root))
    assert study is None
    assert "outside the corpus" in lost[0].reason


def test_wrong_names_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="did you mean 'phantom'"):
        corpus("phantm")
    with pytest.raises(CorpusError, match="does not exist"):
        list(corpus("folder").studies(str(tmp_path / "none")))
    with pytest.raises(CorpusError, match=r"no studies\.csv"):
        list(corpus("folder").studies(str(tmp_path)))
    (tmp_path / "studies.csv").write_text("study_id,split\n")
    with pytest.raises(CorpusError, match="patient_id, images"):
        list(corpus("folder").studies(str(tmp_path)))
    (tmp_path / "studies.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusError, match="UTF-8"):
        list(corpus("folder").studies(str(tmp_path)))
