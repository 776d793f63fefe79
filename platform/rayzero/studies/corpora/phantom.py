"""The simulated chests that ``rayzero.phantom`` writes.

::

    studies.csv     study_id, patient_id, split, study_time, prior_study_id, files (names, ``;``-separated)
    labels.csv      study_id, then one column per finding: 1, 0 or -1
    regions.jsonl   {study_id, file, finding, phrase, box, rle: {size, counts}} a line
    files/<patient_id>/<study_id>/{pa.dcm, lateral.dcm, ct/ or ct.nii.gz, report.txt}

A region on a CT keeps its mask (slices, rows, columns); its box, the extent of the mask, is left out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from rayzero.studies.corpora.base import FileRef, StudyRef, common_fields
from rayzero.studies.corpora.tables import Row, read_rows, read_text
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Mask, Region

_FILMS = "pa.dcm;lateral.dcm"  # of a corpus whose table names no files


class PhantomCorpus:
    """Simulated studies with labels, boxes and masks."""

    name = "phantom"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        rows = read_rows(root, "studies.csv", ("study_id", "patient_id", "split"))
        labels = {row["study_id"]: row for row in read_rows(root, "labels.csv", ("study_id",))}
        regions, damaged = _read_regions(root)
        yield from damaged
        for row in rows:
            study_id = row["study_id"]
            try:
                yield self._ref(row, labels.pop(study_id, None), tuple(regions.pop(study_id, ())))
            except ValueError as error:
                yield row.refused(error, study_id=study_id)
        for name, orphans in (("labels.csv", labels), ("regions.jsonl", regions)):
            for study_id in orphans:
                reason = "studies.csv has no such study"
                yield Quarantined(study_id=study_id, file=name, stage="table", reason=reason)

    def _ref(self, row: Row, labels: Row | None, regions: tuple[Region, ...]) -> StudyRef:
        split, time, prior = common_fields(row)
        study_id = row["study_id"]
        folder = f"files/{row['patient_id']}/{study_id}"
        return StudyRef(
            study_id=study_id,
            patient_id=row["patient_id"],
            corpus=self.name,
            split=split,
            study_time=time,
            prior_study_id=prior,
            files=tuple(
                FileRef(image_id=_image_id(study_id, name), path=f"{folder}/{name}")
                for name in (row.get("files") or _FILMS).split(";")
            ),
            report_file=f"{folder}/report.txt",
            labels=labels.labels([name for name in labels.cells if name != "study_id"]) if labels else {},
            regions=regions,
        )


def _read_regions(root: str) -> tuple[dict[str, list[Region]], list[Quarantined]]:
    """Regions by study_id, and an entry for every line that is not one."""
    regions: dict[str, list[Region]] = defaultdict(list)
    damaged: list[Quarantined] = []
    for number, line in enumerate(read_text(root, "regions.jsonl").splitlines(), start=1):
        try:
            record = json.loads(line)
            regions[record["study_id"]].append(_region(record))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            reason = f"line {number} is not a region: {error!r}"
            damaged.append(Quarantined(study_id="", file="regions.jsonl", stage="table", reason=reason))
    return regions, damaged


def _region(record: Mapping[str, Any]) -> Region:
    box, rle = record.get("box"), record.get("rle")
    mask = None
    if rle:
        mask = Mask(size=tuple(int(n) for n in rle["size"]), counts=tuple(int(n) for n in rle["counts"]))
        mask.array()  # raises when the runs do not fill the size
    if record.get("view") == "volume":
        box = None
    if box is not None:
        x0, y0, x1, y1 = (float(value) for value in box)
        box = (x0, y0, x1, y1)
    return Region(
        image_id=_image_id(record["study_id"], record["file"]),
        finding=record["finding"],
        phrase=record["phrase"],
        box=box,
        mask=mask,
    )


def _image_id(study_id: str, file: str) -> str:
    return f"{study_id}/{PurePosixPath(file).stem}"
