"""PadChest (datasets spec, 1.4 and 2.2).

::

    PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv[.gz]
    0/<ImageID> ... 54/<ImageID>        16-bit PNG, wherever under the root

Studies that physicians labelled are the test split, over 192 findings; PadChest20 are ``TAIL``, those of at most ten
such images. Studies that a network labelled are the train split, save those of a test patient, which are refused.
Reports are stemmed Spanish without stop words: kept as text, of which no sentence is made.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import PurePosixPath

from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.labels import Closed, link_priors
from rayzero.studies.corpora.tables import Row, find_files, one_of_files, read_rows
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Report, View

TABLES = (
    "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
    "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",
)
FIELDS = (
    "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "Projection", "Report", "MethodLabel", "Labels",
)  # fmt: skip
TAIL_COUNT = 10
_PHYSICIAN = "Physician"
_METHODS = {_PHYSICIAN: _PHYSICIAN, "RNN_model": "RNN_model"}
_VIEWS: dict[str, View] = {
    "PA": "frontal", "AP": "frontal", "AP_horizontal": "frontal", "L": "lateral", "COSTAL": "other",
    "EXCLUDE": "other", "UNK": "unknown",
}  # fmt: skip


@dataclass
class _Study:
    patient: str
    time: datetime
    method: str
    report: str
    labels: frozenset[str] | None
    files: list[FileRef] = field(default_factory=list)


class PadChest:
    """Spanish studies with English labels."""

    name = "padchest"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        table = one_of_files(root, TABLES, "the table of images")
        paths = find_files(root, (".png",), key=lambda path: PurePosixPath(path).name)
        studies: dict[str, _Study] = {}
        for row in read_rows(root, table, FIELDS, optional=()):
            try:
                _add(row, studies, paths)
            except ValueError as error:
                yield row.refused(error, study_id=row["StudyID"])
        judged = [study for study in studies.values() if study.method == _PHYSICIAN]
        zeros = dict.fromkeys(findings(study.labels for study in judged if study.labels is not None), 0)
        test_patients = {study.patient for study in judged}
        priors = link_priors({study_id: (study.patient, study.time) for study_id, study in studies.items()})
        for study_id, study in studies.items():
            if study.method != _PHYSICIAN and study.patient in test_patients:
                reason = "the patient has studies in the test split; labelled by a network, this one is no test study"
                yield Quarantined(study_id=study_id, file=table, stage="leakage", reason=reason)
                continue
            if study.labels is None:
                reason = "Labels is not a list of texts; the study is kept without labels"
                yield Quarantined(study_id=study_id, file=table, stage="labels", reason=reason)
            yield self._ref(study_id, study, zeros, priors.get(study_id))

    def _ref(self, study_id: str, study: _Study, zeros: dict[str, int], prior: str | None) -> StudyRef:
        # A network's label that no physician gave is not one of the findings, but is no reason to lose the study.
        named = [name for name in study.labels or () if name in zeros]
        return StudyRef(
            study_id=study_id,
            patient_id=study.patient,
            corpus=self.name,
            split="test" if study.method == _PHYSICIAN else "train",
            study_time=study.time,
            prior_study_id=prior,
            files=tuple(study.files),
            report=Report(text=study.report),
            labels={} if study.labels is None else Closed(zeros, named),
        )


def findings(labelled: Iterable[Iterable[str]]) -> list[str]:
    """The classes of label lists: every label but "normal", in alphabetical order.

    What is no diagnosis ("unchanged", "exclude", "suboptimal study") stays, as in the published protocol.
    """
    return sorted({name for labels in labelled for name in labels} - {"normal"})


def tail(labelled: Iterable[Iterable[str]]) -> list[str]:
    """The classes of at most ``TAIL_COUNT`` images: PadChest20, given the label lists of the physicians' images."""
    counts = Counter(name for labels in labelled for name in set(labels))
    return sorted(name for name, count in counts.items() if count <= TAIL_COUNT and name != "normal")


@lru_cache(maxsize=2**16)
def parse_labels(text: str) -> frozenset[str] | None:
    """The labels in a list literal, blanks around them dropped; None when it is not a list of texts."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return frozenset(item.strip() for item in value) - {""}


def _add(row: Row, studies: dict[str, _Study], paths: dict[str, str]) -> None:
    name, patient = row.filled("ImageID"), row.filled("PatientID")
    try:
        time = datetime.strptime(row["StudyDate_DICOM"], "%Y%m%d")
    except ValueError:
        raise ValueError(f"StudyDate_DICOM is {row['StudyDate_DICOM']!r}; YYYYMMDD is needed") from None
    new = _Study(patient, time, row.one_of("MethodLabel", _METHODS), row["Report"], parse_labels(row["Labels"]))
    view = row.one_of("Projection", _VIEWS)
    study = studies.setdefault(row.filled("StudyID"), new)
    if (study.patient, study.method, study.labels) != (new.patient, new.method, new.labels):
        raise ValueError("the image differs from others of its study in patient, method or labels")
    path = paths.get(name, f"{row['ImageDir']}/{name}")
    study.files.append(FileRef(image_id=PurePosixPath(name).stem, path=path, view=view))
