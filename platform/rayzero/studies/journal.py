"""What an ingest has finished, kept beside the lake so that an ingest that was killed goes on where it stood.

::

    <lake>/ingest/plan.json         the digest of what is to be written, and the generation it is written to
    <lake>/ingest/part-00000.json   a part that is complete: its generation, its counts, and what was refused

A part's file is there before its entry is, and both appear in one step, so whatever is entered was whole. It may be
gone since, for another job's commit clears all generations but its own, and a task that outlived another ingest may
enter a part of that one: what counts is an entry of this generation whose file is there. The folder goes when the
lake is committed, the plan first: a plan without its lake is work to do, and nothing else is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fsspec

from rayzero.storage import open_url
from rayzero.studies.errors import LakeError
from rayzero.studies.lake import Part, Quarantined, new_generation, replace_file, stored_files


@dataclass(frozen=True)
class Journal:
    """The record of one ingest into the lake at ``url``; small enough to travel to every task."""

    url: str
    generation: str

    @classmethod
    def open(cls, url: str, digest: str) -> Journal:
        """The journal of the ingest that ``digest`` identifies, begun earlier or begun now.

        An unfinished ingest of anything else is forgotten. Raises LakeError when the lake cannot be written.
        """
        try:
            plan = _read(f"{url}/ingest/plan.json")
            if plan.get("digest") == digest:
                return cls(url, plan["generation"])
            _remove(url)
            generation = new_generation()
            text = json.dumps({"digest": digest, "generation": generation})
            replace_file(f"{url}/ingest/plan.json", text.encode())
        except OSError as error:
            raise LakeError(f"cannot write the lake at {url}: {error}") from error
        return cls(url, generation)

    def finished(self) -> dict[str, tuple[Part, list[Quarantined]]]:
        """The parts that are complete and still there, by name, and what was refused while each was written."""
        stored = stored_files(self.url, self.generation)
        fs, folder = open_url(f"{self.url}/ingest")
        fs.invalidate_cache()
        found = {}
        for path in fs.ls(folder, detail=False):
            name = str(path).rsplit("/", 1)[-1]
            if name.startswith("part-") and name.endswith(".json"):
                entry = _read(f"{self.url}/ingest/{name}")
                if entry.get("generation") != self.generation or entry["part"]["name"] not in stored:
                    continue
                part = entry["part"]
                groups = tuple((split, rows) for split, rows in part["groups"])
                found[part["name"]] = (
                    Part(name=part["name"], groups=groups, counts=part["counts"], digests=tuple(part["digests"])),
                    [Quarantined(**item) for item in entry["refused"]],
                )
        return found

    def record(self, part: Part, refused: Sequence[Quarantined]) -> None:
        """Enter ``part``, whose file must be complete."""
        entry = {"generation": self.generation, "part": asdict(part), "refused": [asdict(item) for item in refused]}
        name = part.name.removesuffix(".parquet")
        replace_file(f"{self.url}/ingest/{name}.json", json.dumps(entry).encode())

    def close(self) -> None:
        """Forget it all: the lake is committed."""
        _remove(self.url)


def _read(url: str) -> dict[str, Any]:
    """The JSON object at ``url``; empty when there is none, or it is not whole."""
    try:
        with fsspec.open(url, "rb") as file:
            value = json.load(file)
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _remove(url: str) -> None:
    fs, folder = open_url(f"{url}/ingest")
    fs.invalidate_cache()
    if fs.exists(f"{folder}/plan.json"):
        fs.rm_file(f"{folder}/plan.json")
    if fs.exists(folder):
        fs.rm(folder, recursive=True)
