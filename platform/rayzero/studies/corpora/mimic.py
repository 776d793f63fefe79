"""MIMIC-CXR (DICOM) and MIMIC-CXR-JPG, releases 2.0.0 and 2.1.0 (datasets spec, 1.1 and 1.2).

::

    files/p10/p10000001/s50000001/<dicom_id>.{dcm,jpg}
    files/p10/p10000001/s50000001.txt           the report tree, unpacked in the same place
    mimic-cxr-2.0.0-{split,metadata,chexpert,negbio}.csv.gz     of MIMIC-CXR-JPG; copy them beside the DICOM files
    mimic-cxr-2.1.0-test-set-labeled.csv        optional: radiologists' labels, which outrank the labeller's
    mimic_cxr_sectioned.csv[.gz]                optional: the official sections, which outrank the report files of the
                                                studies that it lists

Both releases have the same ids. A study holds all its views; its prior is the patient's study before it by date and
time, for study ids carry no order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from rayzero.reports.sections import parse_report
from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.labels import link_priors
from rayzero.studies.corpora.tables import Row, existing, read_rows
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Report, Split
from rayzero.studies.views import view_named

LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
_TABLE = "mimic-cxr-2.0.0-{}.csv.gz"
_METADATA = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
_VIEW_MEANING = "ViewCodeSequence_CodeMeaning"
_RADIOLOGISTS = "mimic-cxr-2.1.0-test-set-labeled.csv"
_SECTIONED = ("mimic_cxr_sectioned.csv", "mimic_cxr_sectioned.csv.gz")
_SPLITS: dict[str, Split] = {"train": "train", "validate": "validation", "test": "test"}
_TIME = re.compile(r"(\d{1,6})(\.\d+)?")


@dataclass
class _Study:
    patient: str
    split: Split
    time: datetime
    files: list[FileRef] = field(default_factory=list)


@dataclass(frozen=True)
class MimicCxr:
    """MIMIC-CXR in one of its releases, with the labels of one labeller."""

    name: str
    extension: Literal[".dcm", ".jpg"]
    labeller: Literal["chexpert", "negbio"]

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        labels = _labels(root, self.labeller)
        sections = _sections(root)
        studies: dict[str, _Study] = {}
        yield from self._read_images(root, studies)
        priors = link_priors({study_id: (study.patient, study.time) for study_id, study in studies.items()})
        for study_id, study in studies.items():
            yield StudyRef(
                study_id=study_id,
                patient_id=study.patient,
                corpus=self.name,
                split=study.split,
                study_time=study.time,
                prior_study_id=priors.get(study_id),
                files=tuple(study.files),
                report=sections.get(study_id, ""),
                report_file="" if study_id in sections else f"{study_folder(study.patient, study_id)}.txt",
                parse=parse_report,
                labels=labels.get(study_id, {}),
            )

    def _read_images(self, root: str, studies: dict[str, _Study]) -> Iterator[Quarantined]:
        """Fill ``studies`` from the metadata, an image a row; yields the rows that are none."""
        splits = _splits(root)
        for row in read_rows(root, _TABLE.format("metadata"), _METADATA, optional=(_VIEW_MEANING,)):
            study_id = row["study_id"]
            try:
                image_id, patient, time = row.filled("dicom_id"), row.filled("subject_id"), study_time(row)
                if image_id not in splits:
                    raise ValueError(f"{_TABLE.format('split')} does not list the image")
                study = studies.setdefault(row.filled("study_id"), _Study(patient, splits[image_id], time))
                if (study.patient, study.split) != (patient, splits[image_id]):
                    raise ValueError("the image differs from others of its study in patient or split")
            except ValueError as error:
                yield row.refused(error, study_id=study_id)
                continue
            study.time = min(study.time, time)
            view = view_named(row["ViewPosition"]) or view_named(row.get(_VIEW_MEANING))
            path = f"{study_folder(patient, study_id)}/{image_id}{self.extension}"
            study.files.append(FileRef(image_id=image_id, path=path, view=view))


def study_folder(patient: str, study_id: str) -> str:
    """The folder of a study under the root: its group is the first two digits of the patient."""
    return f"files/p{patient[:2]}/p{patient}/s{study_id}"


def ids_of_path(path: str) -> tuple[str, str, str]:
    """(patient_id, study_id, image_id) of an image's path. Raises ValueError when it is not of this corpus."""
    match = re.search(r"(?:^|/)p\d+/p(\d+)/s(\d+)/([0-9a-f-]+)\.(?:jpg|dcm|png)$", path)
    if not match:
        raise ValueError(f"{path!r} is not files/pNN/p<subject>/s<study>/<dicom_id>.jpg")
    return match[1], match[2], match[3]


def study_time(row: Row) -> datetime:
    """StudyDate (YYYYMMDD) and StudyTime of a metadata row. Raises ValueError.

    The time was written as a number and lost its leading zeros: 80556.875 is 08:05:56.875.
    """
    match = _TIME.fullmatch(row["StudyTime"])
    if not match:
        raise ValueError(f"StudyTime is {row['StudyTime']!r}; HHMMSS.fff, leading zeros dropped, is needed")
    try:
        seconds = datetime.strptime(f"{row.integer('StudyDate')} {match[1].zfill(6)}", "%Y%m%d %H%M%S")
    except ValueError:
        raise ValueError(f"StudyDate {row['StudyDate']!r} with StudyTime {row['StudyTime']!r} is no time") from None
    return seconds + timedelta(seconds=float(match[2] or 0))


def _splits(root: str) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    name = _TABLE.format("split")
    for row in read_rows(root, name, ("dicom_id", "split"), optional=()):
        try:
            splits[row["dicom_id"]] = row.one_of("split", _SPLITS)
        except ValueError as error:
            raise CorpusError(f"{name}, row {row.number}: {error}") from None
    return splits


def _labels(root: str, labeller: str) -> dict[str, Mapping[str, int]]:
    """Labels by study; of those that the radiologists read, their columns in place of the labeller's.

    Their blank is a judgement as well, that the report does not mention the finding: the labeller's value goes.
    """
    labels: dict[str, Mapping[str, int]] = {}
    tables: list[tuple[str, tuple[str, ...]]] = [(_TABLE.format(labeller), LABELS)]
    if existing(root, [_RADIOLOGISTS]):
        tables.append((_RADIOLOGISTS, ()))
    for name, required in tables:
        for row in read_rows(root, name, ("study_id", *required), optional=LABELS):
            try:
                given = row.labels([label for label in LABELS if label in row.cells])
            except ValueError as error:
                raise CorpusError(f"{name}, row {row.number}: {error}") from None
            study_id = row["study_id"].removeprefix("s")
            kept = {label: value for label, value in labels.get(study_id, {}).items() if label not in row.cells}
            labels[study_id] = {**kept, **given}
    return labels


def _sections(root: str) -> dict[str, Report]:
    """The official sections by study; none when the table is not there, nor for the few studies that it leaves out."""
    found = existing(root, _SECTIONED)
    if not found:
        return {}
    fields = ("study", "impression", "findings", "last_paragraph")
    return {row["study"].removeprefix("s"): _report(row) for row in read_rows(root, found[0], fields, optional=())}


def _report(row: Row) -> Report:
    parts = {name: row[name] for name in ("findings", "impression") if row[name]}
    # Neither section: the last paragraph says what there is to say.
    parts = parts or {"findings": row["last_paragraph"]}
    text = "\n\n".join(f"{name.upper()}: {body}" for name, body in parts.items())
    return Report(text=text, **parts)
