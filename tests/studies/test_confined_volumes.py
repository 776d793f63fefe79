"""Volumes of a corpus are read in a confined process: the same images, and no file that ends an ingest."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rayzero.studies import ingest as ingests
from rayzero.studies.corpora.base import FileRef, StudyRef, load
from rayzero.studies.ingest import ingest_refs
from rayzero.studies.journal import Journal
from rayzero.studies.lake import Quarantined, commit_lake, normal_url
from rayzero.studies.sandbox import VOLUME_LIMITS, Limits, shared_sandbox
from rayzero.studies.study import Image, Study
from rayzero.studies.volumes import read_volume
from rayzero.studies.voxels import VolumeHeader
from tests.studies.scans import SPACING, chest, nifti_bytes, npz_bytes, series, zipped

HEADER = VolumeHeader(axes=((0, 0, -1), (0, 1, 0), (1, 0, 0)), spacing_mm=SPACING, intercept=-1.0)


def _ref(path: str, header: VolumeHeader | None = None) -> StudyRef:
    files = (FileRef(image_id=f"{path}/ct", path=path, header=header),)
    return StudyRef(study_id=path, patient_id="p", corpus="c", split="train", files=files, report="No pneumothorax.")


def _loaded(root: Path, ref: StudyRef) -> Image:
    study, refused = load(ref, str(root))
    assert refused == []
    assert study is not None
    (image,) = study.images
    return image


def _refusal(root: Path, ref: StudyRef) -> Quarantined:
    study, (refused, nothing_left) = load(ref, str(root))
    assert study is None
    assert (nothing_left.stage, refused.file) == ("study", ref.files[0].path)
    return refused


@pytest.mark.parametrize(
    ("name", "data", "header"),
    [
        ("ct.nii.gz", nifti_bytes(chest()), None),
        ("ct.nii", nifti_bytes(chest(), zipped=False), HEADER),
        ("ct.npz", npz_bytes(ct=chest()), HEADER),
        ("ct.zip", zipped(series(chest())), None),
    ],
)
def test_a_file_reads_as_it_does_in_process(
    tmp_path: Path, name: str, data: bytes, header: VolumeHeader | None
) -> None:
    (tmp_path / name).write_bytes(data)
    assert _loaded(tmp_path, _ref(name, header)) == read_volume(data, name=f"{name}/ct", header=header)


def _write_series(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_a_folder_reads_as_its_zip_does_in_process(tmp_path: Path) -> None:
    files = series(chest())
    _write_series(tmp_path / "ct", files | {"DICOMDIR": b"index"})
    assert _loaded(tmp_path, _ref("ct/")) == read_volume(zipped(files), name="ct//ct")


def test_no_name_of_a_slice_reaches_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"DOE^JANE.{name}": data for name, data in series(chest()).items()}
    files["DOE^JANE.002.dcm"] = b"no slice"
    _write_series(tmp_path / "ct", files)
    (tmp_path / "ct.zip").write_bytes(zipped(files))
    for path in ("ct/", "ct.zip"):
        refused = _refusal(tmp_path, _ref(path))
        assert refused.stage == "open"
        assert refused.reason.startswith("file 3 of the series: not a DICOM file")
    monkeypatch.setattr("rayzero.studies.corpora.base.FILM_LIMITS", Limits(file_bytes=100))
    assert _refusal(tmp_path, _ref("ct/")).reason.startswith("file 1 of the series: a file of")


def test_too_few_files_or_too_many_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_series(tmp_path / "ct", series(chest()))
    monkeypatch.setattr("rayzero.studies.kinds.MAX_SLICES", 5)
    assert _refusal(tmp_path, _ref("ct/")).reason.startswith("6 DICOM files make no volume")


def test_a_volume_may_be_larger_than_a_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayzero.studies.corpora.base.FILM_LIMITS", Limits(file_bytes=100))
    (tmp_path / "ct.nii.gz").write_bytes(nifti_bytes(chest()))
    (tmp_path / "film.png").write_bytes(bytes(200))
    assert _loaded(tmp_path, _ref("ct.nii.gz")).shape == chest().shape
    assert _refusal(tmp_path, _ref("film.png")).reason == "a file of 200 bytes is beyond 100"


def test_a_volume_beyond_what_a_study_holds_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayzero.studies.corpora.base.MAX_STUDY_BYTES", 2 * chest().nbytes)
    for k in range(3):
        (tmp_path / f"{k}.nii.gz").write_bytes(nifti_bytes(chest()))
    files = tuple(FileRef(image_id=f"s/{k}", path=f"{k}.nii.gz") for k in range(3))
    ref = StudyRef(study_id="s", patient_id="p", corpus="c", split="train", files=files, report="No pneumothorax.")
    study, (refused,) = load(ref, str(tmp_path))
    assert study is not None
    assert [image.image_id for image in study.images] == ["s/0", "s/1"]
    assert (refused.file, refused.stage) == ("2.nii.gz", "study")
    assert "take more than 1,920 bytes" in refused.reason


def test_a_volume_that_kills_its_decoder_is_quarantined_and_the_ingest_goes_on(tmp_path: Path) -> None:
    for name in ("first", "bad", "last"):
        (tmp_path / f"{name}.nii.gz").write_bytes(nifti_bytes(chest()))
    _loaded(tmp_path, _ref("first.nii.gz"))
    (process,) = shared_sandbox(VOLUME_LIMITS).processes()
    os.kill(process, signal.SIGSTOP)  # it cannot answer, so that it dies with the first file in its hands
    threading.Timer(0.4, os.kill, (process, signal.SIGSEGV)).start()
    threading.Timer(0.5, os.kill, (process, signal.SIGCONT)).start()
    lake_url = normal_url(str(tmp_path / "lake"))
    journal = Journal.open(lake_url, "digest")
    refs = [_ref("bad.nii.gz"), _ref("last.nii.gz")]
    part, refused = ingest_refs(refs, root=str(tmp_path), journal=journal, name="part-00000.parquet")
    assert (refused[0].study_id, refused[0].file, refused[0].stage) == ("bad.nii.gz", "bad.nii.gz", "decode")
    assert refused[0].reason == "the decoder did not survive the file (SIGSEGV)"
    lake = commit_lake(lake_url, journal.generation, [part], refused)
    assert [study.study_id for study in lake.read()] == ["last.nii.gz"]


@pytest.mark.parametrize(
    ("name", "ahead"), [(lambda k: f"{k}.nii.gz", 1), (lambda k: f"{k}.png", 4), (lambda k: f"{k}/", 1)]
)
def test_volumes_are_read_one_ahead(monkeypatch: pytest.MonkeyPatch, name: Callable[[int], str], ahead: int) -> None:
    asked: list[str] = []

    def loaded(ref: StudyRef, root: str) -> tuple[Study | None, list[Quarantined]]:
        asked.append(ref.study_id)
        return None, [Quarantined(study_id=ref.study_id, file="", stage="", reason="")]

    monkeypatch.setattr(ingests, "load", loaded)
    refs = [_ref(name(k)) for k in range(8)]
    for k, (_, (entry,)) in enumerate(ingests._loaded(refs, "")):
        assert entry.study_id == refs[k].study_id
        assert len(asked) <= k + 1 + ahead
    assert len(asked) == 8
    mixed = [_ref("0.png"), _ref("1.png"), _ref("2.zip"), _ref("3.png"), _ref("4.png")]
    assert [entry.study_id for _, (entry,) in ingests._loaded(mixed, "")] == [ref.study_id for ref in mixed]
