"""The same ingest from and to an object store, whose requests fail, stall and break off on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import s3fs

from rayzero.studies.ingest import ingest
from rayzero.studies.lake import open_lake
from tests.studies.faulty_store import faulty_store
from tests.studies.test_ingest import write_folder


@pytest.mark.cluster
def test_ingest_from_and_to_a_faulty_store(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "corpus", 40)
    here = ingest("folder", root, str(tmp_path / "lake"), cpus=2)
    # The cluster that is running knows nothing of the store: its workers take their environment from where it began.
    import ray

    ray.shutdown()
    with faulty_store(seed=1) as store:
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().put(f"{root}/", "bucket/corpus/", recursive=True)
        there = ingest("folder", "s3://bucket/corpus", "s3://bucket/lake", cpus=2)
        assert store.faults["fail"] > 5
        assert store.faults["stall"] > 2
        assert store.faults["cut"] > 2
        opened = open_lake("s3://bucket/lake")
        assert opened.fingerprint == here.lake.fingerprint == there.lake.fingerprint
        assert opened.quarantine() == list(here.quarantined)
        assert list(opened.read()) == list(here.lake.read())
        assert not s3fs.S3FileSystem().exists("bucket/lake/ingest")
        ray.shutdown()
    s3fs.S3FileSystem.clear_instance_cache()
