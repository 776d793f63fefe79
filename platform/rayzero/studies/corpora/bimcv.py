"""BIMCV-COVID19+ and -, their radiographs or their CT (datasets spec, 1.8).

::

    sub-S03044/ses-E06149/mod-rx/sub-S03044_ses-E06149_run-1_bp-chest_vp-pa_cr.png     16 bits; also _dx.png
                                 sub-S03044_ses-E06149_run-1_bp-chest_vp-pa_cr.json    its DICOM attributes
    sub-S03044/ses-E06149/mod-*/sub-S03044_ses-E06149_run-1_bp-chest_ct.nii.gz
    derivatives/labels/*.tsv                   PatientID, ReportID, Report, Labels, ...; a name of ``TABLES``

A session is a study; all its chest images share the report. Reports are stemmed Spanish: they are kept as text
and give no sentences. The labels are those that the report names, 1 each: the published list is open, so a label
that is not named is unknown, not absent. The split is by patient (70, 15 and 15 %) unless ``splits.csv`` (study_id,
split) lies in the root.

A PNG holds stored values, of either polarity: one without a JSON file of its own is refused. The view is the ``vp`` of
the name, save in a series of several acquisitions (``acq-2``): there it is known to be wrong of laterals, and none is
taken from it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.labels import Splits
from rayzero.studies.corpora.padchest import parse_labels
from rayzero.studies.corpora.tables import Row, existing, find_files, read_rows
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Report
from rayzero.studies.views import view_named

TABLES = (
    "derivatives/labels/Labels_covid_123.tsv",
    "derivatives/labels/labels_covid_posi.tsv",
    "derivatives/labels/labels_covid19_posi.tsv",
    "derivatives/labels/Labels_covid_NEG_JAN21.tsv",
    "derivatives/labels/labels_SARS-cov-2_nega.tsv",
)
"""The tables of the releases, the latest first: a session that several list is as the first of them has it."""

_NAME = r"(?P<patient>sub-[A-Za-z0-9]+)_(?P<session>ses-[A-Za-z0-9]+)_(?P<entities>(?:[a-z]+-[A-Za-z0-9]+_)*)"
_FILES = {"radiograph": re.compile(_NAME + r"(?:cr|dx)\.png"), "ct": re.compile(_NAME + r"ct\.nii\.gz")}
_SUFFIXES = {"radiograph": ".png", "ct": ".nii.gz"}


@dataclass(frozen=True)
class BimcvCovid19:
    """Chest studies of one ``kind`` with Spanish reports and English labels."""

    name: str
    kind: Literal["radiograph", "ct"]

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        tables = existing(root, TABLES)
        if not tables:
            raise CorpusError(f"{root} holds none of {', '.join(TABLES)}; is it the root of BIMCV-COVID19?")
        sessions: dict[str, list[tuple[str, FileRef]]] = defaultdict(list)
        for path in find_files(root, (_SUFFIXES[self.kind],), key=lambda path: path):
            found = _FILES[self.kind].fullmatch(PurePosixPath(path).name)
            if found and not path.startswith("derivatives/"):
                sessions[found["session"]].append((found["patient"], self._file(path, found["entities"])))
        splits = Splits(root)
        for table in tables:
            for row in read_rows(root, table, ("PatientID", "ReportID", "Report", "Labels"), optional=()):
                study_id = f"ses-{row['ReportID'].removeprefix('ses-')}"
                try:
                    # A report on images of the other kind alone is no study of this corpus.
                    if files := sessions.pop(study_id, None):
                        yield self._ref(row, study_id, files, splits)
                except ValueError as error:
                    yield row.refused(error, study_id=study_id)
        for study_id, files in sessions.items():
            reason = "no table lists the session"
            yield Quarantined(study_id=study_id, file=files[0][1].path, stage="table", reason=reason)

    def _file(self, path: str, entities: str) -> FileRef:
        stem = path.removesuffix(_SUFFIXES[self.kind])
        image_id = PurePosixPath(stem).name
        if self.kind == "ct":
            return FileRef(image_id=image_id, path=path)
        named = dict(entity.split("-", 1) for entity in entities.split("_") if entity)
        view = None if "acq" in named else view_named(named.get("vp", ""))
        return FileRef(image_id=image_id, path=path, view=view or "unknown", attributes_file=f"{stem}.json")

    def _ref(self, row: Row, study_id: str, files: list[tuple[str, FileRef]], splits: Splits) -> StudyRef:
        patient = f"sub-{row.filled('PatientID').removeprefix('sub-')}"
        if any(owner != patient for owner, _ in files):
            raise ValueError(f"PatientID is {patient}, the files of the session belong to {files[0][0]}")
        labels = parse_labels(row["Labels"])
        if labels is None:
            raise ValueError(f"Labels is {row['Labels'][:40]!r}; a list of texts is needed")
        return StudyRef(
            study_id=study_id,
            patient_id=patient,
            corpus=self.name,
            split=splits.of(study_id, patient),
            files=tuple(sorted((file for _, file in files), key=lambda file: file.path)),
            report=Report(text=row["Report"]),
            labels=dict.fromkeys(sorted(labels), 1),
        )
