"""Evaluation sets stay out of what is trained on: by id, by equal pixels, and by near-equal images."""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from pydicom.data import get_testdata_file

from jobs import ingest as job
from rayzero.phantom import render_films, sample_patient
from rayzero.studies import leakage
from rayzero.studies.corpora import FileRef, StudyRef
from rayzero.studies.errors import CorpusError, LakeError
from rayzero.studies.files import read_image
from rayzero.studies.lake import open_lake, write_lake
from rayzero.studies.study import Image, Split, Study
from rayzero.studies.tasks import mapped
from tests.studies.corpora.trees import write_csv

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@lru_cache
def film(index: int) -> Pixels:
    """The frontal film of a simulated patient, of a size at which small copies of corpora are handed on."""
    return np.rint(render_films(sample_patient(7, index, "train").studies[0], 320).pa.pixels * 255).astype(np.uint8)


def recompressed(pixels: Pixels, quality: int = 50) -> Pixels:
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(PillowImage.open(buffer))


def equalised(pixels: Pixels) -> Pixels:
    """With the histogram of 256 levels made even, as MIMIC-CXR-JPG was made from DICOM."""
    shares = np.cumsum(np.bincount(pixels.ravel(), minlength=256)) / pixels.size
    return np.rint(shares * 255).astype(np.uint8)[pixels]


def image(pixels: np.ndarray[Any, Any], image_id: str = "i") -> Image:
    return Image.from_array(image_id, pixels, view="frontal", bits=8 * pixels.itemsize)


def study(corpus: str, name: str, pixels: Pixels, split: Split = "test") -> Study:
    return Study(study_id=name, patient_id=name, corpus=corpus, split=split, images=(image(pixels, name),))


def ref(name: str, patient: str, split: Split = "train", path: str = "") -> StudyRef:
    files = (FileRef(image_id=f"{name}-image", path=path or f"{name}.png"),)
    return StudyRef(study_id=name, patient_id=patient, corpus="folder", split=split, files=files)


def test_a_copy_keeps_its_signature_and_another_patient_has_another() -> None:
    films = [film(index) for index in range(12)]
    own = np.stack([leakage.signature(image(pixels)) for pixels in films])
    for row, pixels in zip(own, films, strict=True):
        half = np.asarray(PillowImage.fromarray(pixels).resize((160, 160), PillowImage.Resampling.BOX))
        known = leakage.Known("set", signatures=row[None])
        gamma = np.rint(np.sqrt(pixels / 255) * 255).astype(np.uint8)
        copies = [recompressed(pixels), half, pixels.astype(np.uint16) * 16 + 3, 255 - recompressed(pixels)]
        copies += [recompressed(equalised(pixels)), equalised(half), 255 - recompressed(equalised(pixels), 90), gamma]
        for copy in copies:
            assert leakage._seen(image(copy), known) == "by a near-equal image"
    correlation = own @ own.T / leakage.GRID**2
    assert np.diag(correlation) == pytest.approx(1, abs=1e-4)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < leakage.MIN_CORRELATION


def test_a_real_film_is_recognised_in_its_equalised_copies_and_in_no_other_film() -> None:
    film_file = get_testdata_file("RG1_UNCR.dcm", download=False)
    if film_file is None:
        pytest.skip("the film is in pydicom-data: pip install pydicom-data")
    dicom = read_image(Path(str(film_file)).read_bytes())
    stored = dicom.array().astype(np.float64)
    eight = np.rint((stored - stored.min()) / (stored.max() - stored.min()) * 255).astype(np.uint8)
    flat = equalised(eight)
    rows, columns = flat.shape
    smaller = np.asarray(PillowImage.fromarray(flat).resize((columns // 5, rows // 5), PillowImage.Resampling.BILINEAR))
    own = leakage.signature(dicom)
    assert own is not None
    known = leakage.Known("set", signatures=own[None])
    for copy in (recompressed(flat, 95), recompressed(flat), recompressed(smaller, 75), 255 - recompressed(flat, 95)):
        assert leakage._seen(image(copy), known) == "by a near-equal image"
    assert [leakage._seen(image(film(index)), known) for index in range(12)] == [""] * 12
    # Of the same exposure and not the same film: the other half of the chest.
    assert leakage._seen(image(flat[:, : columns // 2]), known) == ""


def test_noise_of_a_dark_border_ranks_nothing() -> None:
    rng = np.random.default_rng(0)
    inner = film(3).astype(np.uint16) * 16 + 64
    own, *others = (
        leakage.signature(image(np.pad(inner, ((0, 0), (90, 90))) + rng.integers(0, 8, (320, 500), np.uint16)))
        for _ in range(4)
    )
    known = np.stack(others)
    assert (known @ own / leakage.GRID**2).min() > 0.999


def test_no_signature_of_a_flat_or_tiny_image_or_a_volume() -> None:
    assert leakage.signature(image(np.full((64, 64), 9, np.uint8))) is None
    assert leakage.signature(image(np.eye(8, dtype=np.uint8))) is None
    volume = Image.from_array("v", np.zeros((4, 64, 64), np.int16), view="volume", bits=16)
    assert leakage.signature(volume) is None


def test_trap_10_ids_count_among_corpora_that_share_them_alone(tmp_path: Path) -> None:
    phrases = write_lake(str(tmp_path / "lake"), [study("ms-cxr", "10000001", film(0))])
    (group,) = phrases.row_groups()
    same, other = (leakage.describe(group, "ms-cxr", family) for family in ("mimic-cxr", "padchest"))
    assert same.patients == {"10000001"}
    assert (other.patients, other.images, other.studies) == (frozenset(),) * 3
    # Ids that are shared suffice: no image has to be decoded for a comparison.
    assert (same.has_pixels, other.has_pixels) == (False, True)
    assert len(other.signatures) == len(other.hashes) == 1
    refs = [ref("s1", "10000001"), ref("s2", "10000002")]
    assert [m.patient_id for m in leakage.match_ids(refs, [same])] == ["10000001"]
    assert list(leakage.match_ids(refs, [other])) == []


def test_trap_10_renamed_and_recompressed_images_are_recognised(tmp_path: Path) -> None:
    for index in range(3):
        PillowImage.fromarray(film(index)).save(tmp_path / f"{index}.png")
    challenge = [study("siim-pneumothorax", "a", recompressed(film(0))), study("chestx-det10", "b", film(1))]
    (group,) = write_lake(str(tmp_path / "lake"), challenge).row_groups()
    known = leakage.describe(group, "challenges", "nih-chestxray14")
    refs = [ref(f"s{n}", f"p{n}", path=f"{n}.png") for n in range(3)]
    found = leakage.match_pixels([*refs, ref("gone", "p9")], str(tmp_path), [known])
    assert [(m.patient_id, m.by) for m in found] == [("p0", "by a near-equal image"), ("p1", "by equal pixels")]


@pytest.mark.parametrize("column", ["study_id", "image_id"])
def test_trap_10_a_study_of_the_test_split_tells_of_its_patient(tmp_path: Path, column: str) -> None:
    refs = [ref("s1", "p1"), ref("s2", "p1", "test"), ref("s3", "p2"), ref("s4", "p3", "test")]
    listed = {"study_id": ["s2", "s4"], "image_id": ["s2-image", "s4-image"]}[column]
    write_csv(tmp_path / "set.csv", column, [[name] for name in listed])
    excluded = leakage.exclude("folder", str(tmp_path), refs, [str(tmp_path / "set.csv")], workers=1)
    assert [one.study_id for one in excluded.refs] == ["s2", "s3", "s4"]
    assert [entry.study_id for entry in excluded.entries] == ["s1"]


def test_a_patient_with_several_matches_has_one_in_whatever_order_they_come() -> None:
    found = [
        leakage.Match("p1", "b", "by equal pixels"),
        leakage.Match("p1", "a", "by a near-equal image"),
        leakage.Match("p1", "a", "by equal pixels"),
        leakage.Match("p2", "b", "by a near-equal image"),
    ]
    for order in permutations(found):
        assert leakage.first_matches(order, ["a", "b"]) == {"p1": found[2], "p2": found[3]}


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_an_error_of_a_task_is_its_own_one_line() -> None:
    def no_lake(group: int) -> int:
        raise LakeError(f"part {group} is gone")

    with pytest.raises(LakeError) as raised:
        list(mapped(no_lake, [1], name="no_lake", most=1))
    assert (type(raised.value), str(raised.value)) == (LakeError, "part 1 is gone")


@pytest.mark.parametrize(
    ("corpus", "header", "row", "expected"),
    [
        ("folder", "image_id,note", ["s1-image", "x"], "p1"),
        ("folder", "study_id", ["s1"], "p1"),
        ("chexpert", "Variable,Path", ["x", "v1.0/train/patient00007/study2/view1_frontal.jpg"], "patient00007"),
        ("mimic-cxr", "dicom_id,path", ["0a", "files/p10/p10000001/s50000009/0a-0b.jpg"], "10000001"),
    ],
)  # fmt: skip
def test_lists_name_ids_or_published_paths(
    tmp_path: Path, corpus: str, header: str, row: list[str], expected: str
) -> None:
    write_csv(tmp_path / "list.csv", header, [row])
    known = leakage.read_list(str(tmp_path / "list.csv"), corpus)
    refs = [ref("s1", "p1"), ref("x", "patient00007"), ref("y", "10000001")]
    assert [match.patient_id for match in leakage.match_ids(refs, [known])] == [expected]


def test_lists_that_name_nothing_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "list.csv", "study_id,note", [["s1", ""], ["", "x"]])
    with pytest.raises(CorpusError, match=r"list\.csv, row 2: has none of patient_id"):
        leakage.read_list(str(tmp_path / "list.csv"), "folder")
    with pytest.raises(LakeError, match="no lake at"):
        leakage.read_known(str(tmp_path / "none"), "folder", workers=1)


@pytest.mark.cluster
def test_trap_10_ingest_leaves_out_a_patient_of_an_evaluation_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("s0", "p0", "train"), ("s1", "p1", "train"), ("s2", "p1", "validation"), ("s3", "p3", "test")]
    root = tmp_path / "corpus"
    root.mkdir()
    for index, (name, _, _) in enumerate(rows):
        PillowImage.fromarray(film(index)).save(root / f"{name}.png")
    write_csv(root / "studies.csv", "study_id,patient_id,split,images", [(*row, f"{row[0]}.png") for row in rows])
    other = tmp_path / "rsna"
    write_lake(
        str(other),
        [study("rsna-pneumonia", "a", film(0), "train"), study("rsna-pneumonia", "b", recompressed(film(1)))],
    )
    write_csv(tmp_path / "none.csv", "patient_id", [["p77"]])
    write_csv(tmp_path / "tested.csv", "study_id", [["s3"]])
    sets = [f"{other}#test", str(tmp_path / "none.csv"), str(tmp_path / "tested.csv")]
    lake = str(tmp_path / "lake")
    arguments = ["--corpus", "folder", "--root", str(root), "--lake", lake, "--cpus", "2", "--exclude", *sets]
    job.run(arguments)
    assert sorted(found.study_id for found in open_lake(lake).read()) == ["s0", "s3"]
    entries = open_lake(lake).quarantine()
    reason = f"the patient is in {sets[0]} (by a near-equal image)"
    assert [(q.study_id, q.stage, q.reason) for q in entries] == [
        ("s1", "leakage", reason),
        ("s2", "leakage", reason),
    ]
    captured = capsys.readouterr()
    text = captured.out
    assert [line.split(" names ids")[0] for line in captured.err.splitlines() if line.startswith("warning: ")] == [
        f"warning: --exclude {sets[1]}"
    ]
    assert f"excluded     2 studies  ({sets[0]} 2, {sets[1]} 0, {sets[2]} 0)" in text
    assert f"2  leakage: {reason}" in text
