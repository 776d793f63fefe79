"""A lake gives back what was written, is replaced as a whole, and says what is wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rayzero.studies import lake as lakes
from rayzero.studies.errors import LakeError
from rayzero.studies.lake import Quarantined, RowGroup, each_group, open_lake, write_lake
from rayzero.studies.study import (
    SCHEMA_VERSION,
    Image,
    Mask,
    Region,
    Report,
    Sentence,
    Split,
    Study,
    from_row,
    to_row,
)


def _study(number: int, split: Split = "train", size: int = 4) -> Study:
    pixels = np.full((size, size), number, np.uint16)
    image = Image.from_array(f"s{number}/pa", pixels, view="frontal", bits=12, spacing_mm=(0.5, 0.5), window=(9, 4))
    return Study(
        study_id=f"s{number}",
        patient_id=f"p{number}",
        corpus="test",
        split=split,
        study_time=datetime(2020, 1, 2, 3, 4, 5),
        prior_study_id=None,
        images=(image,),
        report=Report(text="FINDINGS: clear", findings="clear"),
        sentences=(Sentence(text="There is edema", status="present", finding="edema"),),
        labels={"edema": 1, "hernia": -1},
        regions=(
            Region(image_id=image.image_id, finding="edema", phrase="edema", box=(0, 1, 2, 3)),
            Region(image_id=image.image_id, finding="x", phrase="x", mask=Mask.from_array(pixels > 0)),
        ),
    )


def test_lake_gives_back_the_studies(tmp_path: Path) -> None:
    studies = [_study(n, "train" if n < 3 else "test") for n in range(5)]
    refused = Quarantined(study_id="s9", file="a.dcm", stage="open", reason="not a DICOM file")
    lake = write_lake(str(tmp_path / "lake"), studies, [refused])
    assert list(lake.read()) == studies
    assert [s.study_id for s in lake.read(splits=["test"])] == ["s3", "s4"]
    assert lake.quarantine() == [refused]
    assert lake.counts["split"] == {"test": 2, "train": 3}
    assert lake.counts["total"]["images"] == 5


def test_the_quarantine_of_a_lake_that_was_rewritten_is_gone(tmp_path: Path) -> None:
    before = write_lake(str(tmp_path), [_study(1)])
    write_lake(str(tmp_path), [_study(2)])
    with pytest.raises(LakeError, match="the lake was rewritten meanwhile; open it again"):
        before.quarantine()


def test_columns_can_be_left_out(tmp_path: Path) -> None:
    lake = write_lake(str(tmp_path), [_study(1)])
    (study,) = lake.read(columns=["labels"])
    assert (study.study_id, study.labels, study.images) == ("s1", {"edema": 1, "hernia": -1}, ())
    with pytest.raises(LakeError, match="did you mean 'labels'"):
        list(lake.read(columns=["label"]))


def test_row_groups_are_bounded_and_of_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lakes, "GROUP_STUDIES", 4)
    lake = write_lake(str(tmp_path), [_study(n, "train" if n < 10 else "validation") for n in range(13)])
    assert [group.num_rows for group in lake.row_groups()] == [4, 4, 2, 3]
    assert [group.index for group in lake.row_groups(["validation"])] == [3]
    monkeypatch.setattr(lakes, "GROUP_BYTES", 2 * 4 * 4 * 2)
    lake = write_lake(str(tmp_path), [_study(n) for n in range(5)])
    assert [group.num_rows for group in lake.row_groups()] == [2, 2, 1]


def test_fingerprint_follows_all_that_studies_say_and_not_their_order(tmp_path: Path) -> None:
    studies = [_study(n) for n in range(3)]
    # No number of single precision: what is read back differs, and is the same film.
    studies[0] = replace(studies[0], images=(replace(studies[0].images[0], spacing_mm=(0.143, 0.143)),))
    first = write_lake(str(tmp_path / "a"), studies).fingerprint
    assert write_lake(str(tmp_path / "b"), studies[::-1]).fingerprint == first
    assert write_lake(str(tmp_path / "c"), studies[:2]).fingerprint != first
    assert write_lake(str(tmp_path / "e"), open_lake(str(tmp_path / "a")).read()).fingerprint == first
    image = studies[0].images[0]
    others = [
        {"images": (Image.from_array(image.image_id, image.array() + 1, view=image.view, bits=image.bits),)},
        {"images": (replace(image, view="lateral"),)},
        {"sentences": (Sentence(text="no effusion", status="absent", finding="pleural effusion"),)},
        {"report": Report(text="another")},
        {"labels": {**studies[0].labels, "oedema": 1}},
        {"patient_id": "another"},
    ]
    for change in others:
        changed = [replace(studies[0], **change), *studies[1:]]  # type: ignore[arg-type]
        assert write_lake(str(tmp_path / "d"), changed).fingerprint != first, change


def test_rewriting_replaces_everything(tmp_path: Path) -> None:
    old = write_lake(str(tmp_path), [_study(1)])
    new = write_lake(str(tmp_path), [_study(2)])
    assert [s.study_id for s in open_lake(str(tmp_path)).read()] == ["s2"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == [new.generation]
    with pytest.raises(LakeError, match="rewritten meanwhile"):
        list(old.read())


def test_an_interrupted_write_leaves_the_old_lake_in_force(tmp_path: Path) -> None:
    write_lake(str(tmp_path), [_study(1)])

    def broken() -> Iterator[Study]:
        yield _study(2)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_lake(str(tmp_path), broken())
    assert [s.study_id for s in open_lake(str(tmp_path)).read()] == ["s1"]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match=r"no lake at .*jobs\.ingest"):
        open_lake(str(tmp_path / "none"))
    lake = write_lake(str(tmp_path), [_study(1)])
    with pytest.raises(LakeError, match="no split 'tran'; did you mean 'train'"):
        lake.row_groups(["tran"])
    card = json.loads((tmp_path / "lake.json").read_text())
    (tmp_path / "lake.json").write_text(json.dumps({**card, "schema_version": "0"}))
    with pytest.raises(LakeError, match="schema version 0"):
        open_lake(str(tmp_path))
    (tmp_path / "lake.json").write_text("{")
    with pytest.raises(LakeError, match="damaged"):
        open_lake(str(tmp_path))


def test_parquet_states_the_schema_version(tmp_path: Path) -> None:
    lake = write_lake(str(tmp_path), [_study(1)])
    path = lake.row_groups()[0].path.removeprefix("file://")
    assert pq.read_schema(path).metadata[b"rayzero.schema_version"] == SCHEMA_VERSION.encode()


def test_a_study_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(writer: pq.ParquetWriter, table: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(lakes.pq.ParquetWriter, "write_table", full)
    with pytest.raises(LakeError, match=r"part-00000\.parquet at study s1: no space left"):
        write_lake(str(tmp_path), [_study(1)])
    with pytest.raises(LakeError, match="at studies s1 to s3: no space left"):
        write_lake(str(tmp_path), [_study(n) for n in (1, 2, 3)])


def test_lake_lives_on_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        write_lake("s3://bucket/lake", [_study(1)])
        for folder in ("lake", "lake/data"):
            s3fs.S3FileSystem().call_s3("put_object", Bucket="bucket", Key=f"{folder}/", Body=b"")
        lake = write_lake("s3://bucket/lake", [_study(2), _study(3, "test")])
        assert [s.study_id for s in open_lake("s3://bucket/lake").read()] == ["s2", "s3"]
        assert lake.row_groups(["test"])[0].path.startswith("s3://bucket/lake/data/")
        with pytest.raises(LakeError, match="no lake at"):
            open_lake("s3://bucket/none")
        s3fs.S3FileSystem.clear_instance_cache()
    finally:
        server.stop()


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_mask_runs_round_trip(mask: np.ndarray) -> None:  # type: ignore[type-arg]
    encoded = Mask.from_array(mask)
    np.testing.assert_array_equal(encoded.array(), mask)
    assert sum(encoded.counts) == mask.size


_NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@given(
    study_id=_NAMES,
    pixels=hnp.arrays(np.int16, hnp.array_shapes(min_dims=2, max_dims=3, max_side=4)),
    labels=st.dictionaries(_NAMES, st.sampled_from([1, 0, -1]), max_size=3),
    time=st.none() | st.datetimes(),
)
def test_rows_round_trip(
    study_id: str,
    pixels: np.ndarray,  # type: ignore[type-arg]
    labels: dict[str, int],
    time: datetime | None,
) -> None:
    image = Image.from_array("i", pixels, view="other", bits=16)
    study = Study(
        study_id=study_id, patient_id="p", corpus="c", split="test", study_time=time, images=(image,), labels=labels
    )
    assert from_row(to_row(study)) == study
    np.testing.assert_array_equal(from_row(to_row(study)).images[0].array(), pixels)


def test_row_groups_are_read_side_by_side_and_given_in_order() -> None:
    groups = [RowGroup(f"part-{index}", 0, index) for index in range(20)]
    # Each of two waits for the other: one after another, they would wait for ever.
    meeting = threading.Barrier(2, timeout=30)

    def rows(group: RowGroup) -> int:
        meeting.wait()
        return group.num_rows

    assert each_group(groups, rows) == list(range(20))

    def damaged(group: RowGroup) -> int:
        raise LakeError(f"{group.path} is damaged")

    with pytest.raises(LakeError, match="part-0 is damaged"):
        each_group(groups, damaged)
