"""A plain folder of one's own: ``studies.csv`` beside the image files.

Columns: ``study_id``, ``patient_id``, ``split`` (train, validation, test), ``images`` (paths relative to the
folder, ``;``-separated); optional ``study_time`` (ISO 8601), ``prior_study_id``, and ``report``: the text itself,
or the path of a ``.txt`` file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from rayzero.studies.corpora.base import FileRef, StudyRef, common_fields, read_table
from rayzero.studies.lake import Quarantined

_REQUIRED = ("study_id", "patient_id", "split", "images")


class FolderCorpus:
    """Studies listed in a table of one's own."""

    name = "folder"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        for row in read_table(root, "studies.csv", _REQUIRED):
            try:
                yield self._ref(row)
            except ValueError as error:
                yield Quarantined(study_id=row["study_id"], file="studies.csv", stage="table", reason=str(error))

    def _ref(self, row: Mapping[str, str]) -> StudyRef:
        split, time, prior = common_fields(row)
        paths = [path.strip() for path in row["images"].split(";") if path.strip()]
        if len(set(paths)) != len(paths):
            raise ValueError("images names a file twice")
        report = row.get("report", "")
        is_file = report.lower().endswith(".txt") and "\n" not in report
        return StudyRef(
            study_id=row["study_id"],
            patient_id=row["patient_id"],
            corpus=self.name,
            split=split,
            study_time=time,
            prior_study_id=prior,
            # The whole path less its extension: two folders of a study may use one file name.
            files=tuple(
                FileRef(image_id=f"{row['study_id']}/{PurePosixPath(p).with_suffix('')}", path=p) for p in paths
            ),
            report="" if is_file else report,
            report_file=report if is_file else "",
        )
