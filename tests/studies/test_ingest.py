"""The unit of ingest without Ray, a whole ingest on a cluster, and ingests that were cut short."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fsspec.config import conf

from rayzero.studies import ingest as ingests
from rayzero.studies.errors import CorpusError, LakeError
from rayzero.studies.ingest import Progress, chunked, ingest, ingest_refs, plan
from rayzero.studies.journal import Journal
from rayzero.studies.lake import Quarantined, commit_lake, normal_url, open_lake, write_lake
from tests.studies.films import film_bytes

ROOT = Path(__file__).parents[2]


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


def tree(lake: Path) -> dict[str, bytes]:
    """Every file of a lake, under names and with contents that leave the name of the generation out."""
    generation = json.loads((lake / "lake.json").read_text())["generation"]
    files = [path for path in sorted(lake.rglob("*")) if path.is_file()]
    return {
        path.relative_to(lake).as_posix().replace(generation, "G"): path.read_bytes().replace(generation.encode(), b"G")
        for path in files
    }


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
    journal = Journal.open(lake_url, "digest")
    part, refused = ingest_refs(refs, root=root, journal=journal, name="part-00000.parquet")
    again, _ = ingest_refs(refs, root=root, journal=journal, name="part-00000.parquet")
    assert part == again
    assert [q.stage for q in refused] == ["open", "study"]
    assert Journal.open(lake_url, "digest").finished() == {part.name: (part, refused)}
    lake = commit_lake(lake_url, journal.generation, [part], refused)
    assert lake.counts["total"] == {"images": 4, "sentences": 4, "studies": 4, "without_sentences": 0}
    assert sorted(study.study_id for study in lake.read()) == ["s0", "s1", "s2", "s3"]


def test_a_journal_serves_its_own_ingest_alone(tmp_path: Path) -> None:
    root, lake_url = write_folder(tmp_path / "corpus", 3), normal_url(str(tmp_path / "lake"))
    first = Journal.open(lake_url, "one")
    ingest_refs(plan("folder", root)[0], root=root, journal=first, name="part-00000.parquet")
    assert Journal.open(lake_url, "one") == first
    other = Journal.open(lake_url, "another")
    assert other.generation != first.generation
    assert other.finished() == {}
    other.close()
    assert not (tmp_path / "lake" / "ingest").exists()


def test_a_part_whose_file_is_gone_is_not_finished(tmp_path: Path) -> None:
    """Another job that was committed to the same lake meanwhile has cleared the generation away."""
    root, lake_url = write_folder(tmp_path / "corpus", 3), normal_url(str(tmp_path / "lake"))
    refs, _ = plan("folder", root)
    journal = Journal.open(lake_url, "one")
    parts = [ingest_refs(refs, root=root, journal=journal, name=f"part-0000{n}.parquet")[0] for n in range(2)]
    write_lake(lake_url, [])
    other = open_lake(lake_url)
    assert journal.finished() == {}
    with pytest.raises(LakeError, match=r"2 of the 2 new parts are gone, the first part-00000\.parquet"):
        commit_lake(lake_url, journal.generation, parts, [])
    assert open_lake(lake_url).generation == other.generation
    ingest_refs(refs, root=root, journal=journal, name=parts[0].name)
    (tmp_path / "lake" / "data" / journal.generation / parts[1].name).touch()
    assert list(journal.finished()) == [parts[0].name]


def test_an_entry_of_another_generation_is_not_finished(tmp_path: Path) -> None:
    """A task that outlives its ingest enters its part under the name of one of the next ingest's."""
    root, lake_url = write_folder(tmp_path / "corpus", 3), normal_url(str(tmp_path / "lake"))
    refs, _ = plan("folder", root)
    old = Journal.open(lake_url, "one")
    new = Journal.open(lake_url, "another")
    part, refused = ingest_refs(refs, root=root, journal=new, name="part-00000.parquet")
    assert new.finished() == {part.name: (part, refused)}
    ingest_refs(refs[:1], root=root, journal=old, name=part.name)
    assert new.finished() == {}


def test_the_order_of_what_was_refused_makes_no_other_ingest(tmp_path: Path) -> None:
    refs, _ = plan("folder", write_folder(tmp_path / "corpus", 3))
    refused = [Quarantined(study_id=f"s{n}", file="a", stage="table", reason="r") for n in range(3)]
    digests = {ingests._digest("folder", "root", refs, order) for order in (refused, refused[::-1])}
    assert len(digests) == 1
    assert digests != {ingests._digest("folder", "root", refs, refused[1:])}


def test_parts_do_not_depend_on_the_machine() -> None:
    assert [ingests._part_size(total) for total in (1, 500, 5_000, 10**6)] == [32, 32, 79, 256]


@pytest.mark.cluster
def test_ingest_on_a_cluster(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "corpus", 70)
    seen: list[Progress] = []
    result = ingest("folder", root, str(tmp_path / "lake"), cpus=2, on_progress=seen.append)
    assert result.lake.counts["split"] == {"test": 17, "train": 52}
    assert (seen[-1].studies, seen[-1].total, seen[-1].images, seen[-1].quarantined) == (70, 70, 69, 2)
    assert seen[-1].seconds_left == 0
    assert len(result.quarantined) == 2
    assert result.lake.quarantine() == list(result.quarantined)
    assert not (tmp_path / "lake" / "ingest").exists()


@pytest.mark.cluster
def test_finished_parts_are_not_written_again(tmp_path: Path) -> None:
    root, target = write_folder(tmp_path / "corpus", 150), tmp_path / "lake"
    undisturbed = ingest("folder", root, str(tmp_path / "undisturbed"), cpus=2)

    def stop(progress: Progress) -> None:
        if progress.studies >= 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest("folder", root, str(target), cpus=2, on_progress=stop)
    assert not (target / "lake.json").exists()
    written = {path: path.stat().st_mtime_ns for path in target.glob("data/*/part-*.parquet")}
    finished = {path.stem for path in (target / "ingest").glob("part-*.json")}
    assert finished
    resumed = ingest("folder", root, str(target), cpus=2)
    assert resumed.resumed_images > 0
    assert tree(target) == tree(tmp_path / "undisturbed")
    assert resumed.lake.fingerprint == undisturbed.lake.fingerprint
    for path, time_written in written.items():
        if path.stem in finished:
            assert path.stat().st_mtime_ns == time_written
    repaired = Path(root) / "149.dcm"
    repaired.write_bytes(film_bytes())
    assert ingest("folder", root, str(target), cpus=2).lake.counts["total"]["studies"] == 150


@pytest.mark.cluster
def test_an_ingest_that_reads_nothing_leaves_the_old_lake(tmp_path: Path) -> None:
    root, target = Path(write_folder(tmp_path / "corpus", 5)), tmp_path / "lake"
    films = {path: path.read_bytes() for path in root.glob("*.dcm")}
    old = ingest("folder", str(root), str(target), cpus=2).lake
    for path in films:
        path.unlink()
    with pytest.raises(CorpusError, match=r"none of the 5 studies .* 5 times for .*: open: the file does not"):
        ingest("folder", str(root), str(target), cpus=2)
    assert open_lake(str(target)).generation == old.generation
    assert len(list(open_lake(str(target)).read())) == 4
    for path, data in films.items():
        path.write_bytes(data)
    assert ingest("folder", str(root), str(target), cpus=2).lake.fingerprint == old.fingerprint


def test_tables_that_list_no_study_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    root, target = tmp_path / "corpus", tmp_path / "lake"
    root.mkdir()
    rows = "s1,p1,training,a.png\ns2,p2,training,b.png\n,p3,train,c.png\n"
    (root / "studies.csv").write_text("study_id,patient_id,split,images\n" + rows)
    with pytest.raises(
        CorpusError, match=r"list no study: 3 rows are refused, 2 of them for .*'training'.*csv, row 1\)"
    ):
        ingest("folder", str(root), str(target), cpus=2)
    assert not target.exists()


def ingest_command(root: str, lake: Path) -> list[str]:
    ends = ["--root", root, "--lake", str(lake), "--cpus", "2"]
    return [sys.executable, "-m", "jobs.ingest", "--corpus", "folder", *ends]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A corpus, and its lake as an ingest that nothing interrupts writes it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    root, lake = write_folder(folder / "corpus", 130), folder / "lake"
    subprocess.run(ingest_command(root, lake), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return root, lake


@pytest.mark.cluster
@pytest.mark.parametrize("after", ["ingest/plan.json", "ingest/part-*.json", "lake.json"])
def test_a_killed_ingest_is_continued(undisturbed: tuple[str, Path], tmp_path: Path, after: str) -> None:
    root, target = undisturbed[0], tmp_path / "lake"
    command = ingest_command(root, target)
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(target.glob(after)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    running = process.poll() is None
    process.kill()
    process.wait()
    # The file that is waited for last is the end of the work: the process may be done by then.
    assert running or after == "lake.json", "the ingest was over before it could be killed"
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    ours, expected = tree(target), tree(undisturbed[1])
    for files in (ours, expected):
        del files["card.html"]  # it names the folder
    assert ours == expected


def test_a_store_that_is_down_stops_the_ingest_and_blames_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayzero.studies.corpora.base import load

    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setitem(conf["s3"]["config_kwargs"], "retries", {"total_max_attempts": 2})
    s3fs.S3FileSystem.clear_instance_cache()
    (ref,) = plan("folder", write_folder(tmp_path / "corpus", 1))[0]
    with pytest.raises(CorpusError, match=r"0\.dcm cannot be read now"):
        load(ref, "s3://bucket/corpus")
    s3fs.S3FileSystem.clear_instance_cache()
