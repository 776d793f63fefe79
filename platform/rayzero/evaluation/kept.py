"""Scores of row groups kept beside the report, so that an interrupted evaluation continues where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow.parquet as pq

from rayzero.config import Config
from rayzero.evaluation.records import SCHEMA, ImageScores, Task, from_table, to_table
from rayzero.storage import open_url
from rayzero.studies.lake import RowGroup, replace_file


@dataclass(frozen=True)
class Kept:
    """Files in the folder ``url``, one per row group. ``model`` identifies the weights that made them.

    A file is found again only for the same weights, settings, task, row group and columns; a lake that was written
    again has other row groups.
    """

    url: str
    model: str

    def read(self, group: RowGroup, task: Task, config: Config) -> list[ImageScores] | None:
        """The scores of ``group``, None when they are still to be made."""
        fs, path = open_url(self._path(group, task, config))
        if not fs.exists(path):
            return None
        return from_table(pq.read_table(io.BytesIO(fs.cat_file(path))))

    def write(self, group: RowGroup, task: Task, config: Config, records: Sequence[ImageScores]) -> None:
        """Keep the scores of ``group``; the file appears when it is complete."""
        file = io.BytesIO()
        pq.write_table(to_table(records), file, compression="zstd")
        replace_file(self._path(group, task, config), file.getvalue())

    def _path(self, group: RowGroup, task: Task, config: Config) -> str:
        asked = {**asdict(task), "examples": sorted(task.examples), "segment": sorted(task.segment)}
        settings = config.model_dump(mode="json", include={"system", "data", "vision", "text", "model", "evaluation"})
        # Neither changes a score.
        settings["evaluation"] = {k: v for k, v in settings["evaluation"].items() if k not in ("bootstrap", "overlays")}
        facts = [self.model, group.path, group.index, asked, settings, SCHEMA.to_string()]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return f"{self.url.rstrip('/')}/{digest[:32]}.parquet"
