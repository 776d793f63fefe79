"""BIMCV-COVID19+ and -, the CT studies (datasets spec, 1.8).

::

    sub-S03044/ses-E06149/mod-*/sub-S03044_ses-E06149_run-1_bp-chest_ct.nii.gz
    derivatives/labels/{labels_covid19_posi, labels_SARS-cov-2_nega}.tsv     PatientID, ReportID, Report, Labels, ...

A session is a study; all its chest CT files share the report. Reports are stemmed Spanish: they are kept as text
and give no sentences. The labels are those that the report names, 1 each: the published list is open, so a label
that is not named is unknown, not absent. The split is by patient (70, 15 and 15 %) unless ``splits.csv`` (study_id,
split) lies in the root. The radiographs are left out: their polarity is in JSON files beside them, which differ.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.labels import Splits
from rayzero.studies.corpora.padchest import parse_labels
from rayzero.studies.corpora.tables import Row, existing, find_files, read_rows
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Report

TABLES = ("derivatives/labels/labels_covid19_posi.tsv", "derivatives/labels/labels_SARS-cov-2_nega.tsv")
_FILE = re.compile(r"(sub-[A-Za-z0-9]+)_(ses-[A-Za-z0-9]+)_(?:[a-z]+-[A-Za-z0-9]+_)*ct\.nii\.gz")


class BimcvCovid19:
    """Chest CT studies with Spanish reports and English labels."""

    name = "bimcv-covid19"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        tables = existing(root, TABLES)
        if not tables:
            raise CorpusError(f"{root} holds none of {', '.join(TABLES)}; is it the root of BIMCV-COVID19?")
        sessions: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name, path in find_files(root, (".nii.gz",), key=lambda path: path).items():
            found = _FILE.fullmatch(PurePosixPath(name).name)
            if found and not path.startswith("derivatives/"):
                sessions[found[2]].append((found[1], path))
        splits = Splits(root)
        for table in tables:
            for row in read_rows(root, table, ("PatientID", "ReportID", "Report", "Labels"), optional=()):
                study_id = f"ses-{row['ReportID'].removeprefix('ses-')}"
                try:
                    # A report of radiographs alone has no CT and is no study of this corpus.
                    if files := sessions.pop(study_id, None):
                        yield self._ref(row, study_id, files, splits)
                except ValueError as error:
                    yield row.refused(error, study_id=study_id)
        for study_id, files in sessions.items():
            yield Quarantined(study_id=study_id, file=files[0][1], stage="table", reason="no table lists the session")

    def _ref(self, row: Row, study_id: str, files: list[tuple[str, str]], splits: Splits) -> StudyRef:
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
            files=tuple(
                FileRef(image_id=PurePosixPath(path).name.removesuffix(".nii.gz"), path=path)
                for _, path in sorted(files)
            ),
            report=Report(text=row["Report"]),
            labels=dict.fromkeys(sorted(labels), 1),
        )
