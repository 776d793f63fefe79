"""The unit of ingest without Ray, and a whole ingest on a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayzero.studies.ingest import Progress, chunked, ingest, ingest_refs, plan
from rayzero.studies.lake import commit_lake, normal_url
from tests.studies.films import film_bytes


def write_folder(root: Path, count: int) -> str:
    """A corpus of ``count`` one-film studies; every fourth is a test study, and the last film is no film."""
    root.mkdir()
    lines = ["study_id,patient_id,split,images,report"]
    for number in range(count):
        split = "test" if number % 4 == 3 else "train"
        lines.append(f"s{number},p{number},{split},{number}.dcm,No pneumothorax.")
        (root / f"{number}.dcm").write_bytes(film_bytes(WindowCenter=number + 1, WindowWidth=9))
    (root / f"{count - 1}.dcm").write_text("not a film")
    (root / "studies.csv").write_text("\n".join(lines))
    return str(root)


def test_plan_orders_by_split_and_keeps_to_the_limit(tmp_path: Path) -> None:
    refs, refused = plan("folder", write_folder(tmp_path / "corpus", 9), limit=8)
    assert [ref.split for ref in refs] == ["test"] * 2 + ["train"] * 6
    assert refused == []
    assert [[ref.study_id for ref in chunk] for chunk in chunked(refs, 4)] == [
        ["s3", "s7"],
        ["s0", "s1", "s2", "s4"],
        ["s5", "s6"],
    ]


def test_one_unit_of_work_needs_no_cluster(tmp_path: Path) -> None:
    root, lake_url = write_folder(tmp_path / "corpus", 5), normal_url(str(tmp_path / "lake"))
    refs, _ = plan("folder", root)
    part, refused = ingest_refs(refs, root=root, lake=lake_url, generation="g", name="part-00000.parquet")
    again, _ = ingest_refs(refs, root=root, lake=lake_url, generation="g", name="part-00000.parquet")
    assert part == again
    assert [q.stage for q in refused] == ["open", "study"]
    lake = commit_lake(lake_url, "g", [part], refused)
    assert lake.counts["total"] == {"images": 4, "sentences": 4, "studies": 4, "without_sentences": 0}
    assert sorted(study.study_id for study in lake.read()) == ["s0", "s1", "s2", "s3"]


@pytest.mark.cluster
def test_ingest_on_a_cluster(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "corpus", 70)
    seen: list[Progress] = []
    result = ingest("folder", root, str(tmp_path / "lake"), cpus=2, on_progress=seen.append)
    assert result.lake.counts["split"] == {"test": 17, "train": 52}
    assert (seen[-1].studies, seen[-1].total, seen[-1].images) == (70, 70, 69)
    assert len(result.quarantined) == 2
    assert result.lake.quarantine() == list(result.quarantined)
