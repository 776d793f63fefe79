"""What every corpus offers: cheap references to its studies, and one way to load a reference.

A corpus reads tables alone. The files of a study are read by ``load``, in parallel and on any machine that
reaches the corpus folder.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, cast, get_args

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from rayzero.reports.sections import parse_report
from rayzero.reports.sentences import extract_sentences
from rayzero.studies.errors import CorpusError, StudyFileError
from rayzero.studies.lake import Quarantined
from rayzero.studies.sandbox import Limits, shared_sandbox
from rayzero.studies.study import Image, Region, Split, Study


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """An image file: its id in the lake, and its path relative to the corpus root."""

    image_id: str
    path: str


@dataclass(frozen=True, kw_only=True)
class StudyRef:
    """A study before its files are read. ``report_file`` (relative path) is read when ``report`` is empty."""

    study_id: str
    patient_id: str
    corpus: str
    split: Split
    study_time: datetime | None = None
    prior_study_id: str | None = None
    files: tuple[FileRef, ...] = ()
    report: str = ""
    report_file: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()


class Corpus(Protocol):
    """A published collection, or the layout of one's own."""

    name: str

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """Every study under ``root`` (folder or URL), and every table row that is not one.

        Raises CorpusError when a table is missing or not of the corpus's layout.
        """
        ...


def unique(items: Iterable[StudyRef | Quarantined]) -> Iterator[StudyRef | Quarantined]:
    """``items`` with every study_id after its first occurrence turned into a quarantine entry."""
    seen: set[str] = set()
    for item in items:
        if isinstance(item, StudyRef) and item.study_id in seen:
            yield Quarantined(study_id=item.study_id, file="", stage="table", reason="the study_id occurs twice")
            continue
        if isinstance(item, StudyRef):
            seen.add(item.study_id)
        yield item


def load(ref: StudyRef, root: str) -> tuple[Study | None, list[Quarantined]]:
    """The study behind ``ref`` and what of it could not be read; None when no image reads.

    Files are read in a confined process (``rayzero.studies.sandbox``). Raises CorpusError when the store is down.

    A missing or undecodable report is quarantined and the study kept with an empty one: it still serves image-only
    training and evaluation by labels.
    """
    fs, base = url_to_fs(root)
    refused: list[Quarantined] = []
    images: list[Image] = []
    for file in ref.files:
        try:
            images.append(shared_sandbox().read_image(_read(fs, base, file.path), name=file.image_id))
        except StudyFileError as error:
            refused.append(_refusal(ref, file.path, error))
    if not images:
        reason = "the study lists no image" if not ref.files else "none of its images can be read"
        return None, [*refused, Quarantined(study_id=ref.study_id, file="", stage="study", reason=reason)]
    text = ref.report
    if not text and ref.report_file:
        try:
            text = _decode(_read(fs, base, ref.report_file))
        except StudyFileError as error:
            refused.append(
                Quarantined(study_id=ref.study_id, file=ref.report_file, stage="report", reason=error.reason)
            )
    report = parse_report(text)
    regions, lost = _split_regions(ref, {image.image_id for image in images})
    study = Study(
        study_id=ref.study_id,
        patient_id=ref.patient_id,
        corpus=ref.corpus,
        split=ref.split,
        study_time=ref.study_time,
        prior_study_id=ref.prior_study_id,
        images=tuple(images),
        report=report,
        sentences=extract_sentences(report),
        labels=ref.labels,
        regions=regions,
    )
    return study, refused + lost


def read_table(root: str, name: str, required: Sequence[str]) -> list[dict[str, str]]:
    """The rows of the CSV file ``name`` under ``root``; blank cells are "". Raises CorpusError."""
    reader = csv.DictReader(io.StringIO(read_text(root, name)), strict=True)
    try:
        rows = [{k: (v or "").strip() for k, v in row.items() if isinstance(k, str)} for row in reader]
    except csv.Error as error:
        raise CorpusError(f"{name} is not a readable CSV table: line {reader.line_num}: {error}") from None
    missing = [column for column in required if column not in (reader.fieldnames or ())]
    if missing:
        raise CorpusError(f"{name} lacks the column(s) {', '.join(missing)}")
    return rows


def read_text(root: str, name: str) -> str:
    """The UTF-8 file ``name`` under ``root`` (a BOM is dropped). Raises CorpusError."""
    fs, base = url_to_fs(root)
    if not fs.exists(base):
        raise CorpusError(f"no corpus at {root}: the folder does not exist")
    try:
        data: bytes = fs.cat_file(f"{base}/{name}")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise CorpusError(f"{root} holds no {name}; is it the root of this corpus?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{name} cannot be read as UTF-8 text: {error}") from None


def common_fields(row: Mapping[str, str]) -> tuple[Split, datetime | None, str | None]:
    """Split, time (naive UTC) and prior study of a table row. Raises ValueError naming the bad cell."""
    if not row["study_id"] or not row["patient_id"]:
        raise ValueError("study_id or patient_id is blank")
    if row["split"] not in get_args(Split):
        raise ValueError(f"split is {row['split']!r}; give one of {', '.join(get_args(Split))}")
    time = datetime.fromisoformat(row["study_time"]) if row.get("study_time") else None
    if time is not None and time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    return cast(Split, row["split"]), time, row.get("prior_study_id") or None


def _read(fs: AbstractFileSystem, base: str, path: str) -> bytes:
    """The bytes of ``path``, which a table named: it may not point outside the corpus."""
    full = posixpath.normpath(f"{base}/{path}")
    if path.startswith("/") or not full.startswith(posixpath.normpath(base) + "/"):
        raise StudyFileError("open", "the path leads outside the corpus folder")
    try:
        size = fs.size(full)
        if size > Limits().file_bytes:
            raise StudyFileError("open", f"a file of {size:,} bytes is beyond {Limits().file_bytes:,}")
        data: bytes = fs.cat_file(full)
    except FileNotFoundError:
        raise StudyFileError("open", "the file does not exist") from None
    except StudyFileError:
        raise
    except Exception as error:  # a store's client raises types of its own
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(fs, LocalFileSystem) or isinstance(error, PermissionError | IsADirectoryError):
            raise StudyFileError("open", f"the file cannot be read: {reason}") from error
        # Not the file's fault: the request has been repeated, see rayzero.studies.storage.
        raise CorpusError(f"{fs.unstrip_protocol(full)} cannot be read now ({reason}); run this again later") from error
    return data


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyFileError("report", f"the report is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _refusal(ref: StudyRef, path: str, error: StudyFileError) -> Quarantined:
    return Quarantined(study_id=ref.study_id, file=path, stage=error.stage, reason=error.reason)


def _split_regions(ref: StudyRef, images: set[str]) -> tuple[tuple[Region, ...], list[Quarantined]]:
    """Regions on images that were read, and an entry for each of the others."""
    kept = tuple(region for region in ref.regions if region.image_id in images)
    lost = [
        Quarantined(
            study_id=ref.study_id,
            file=region.image_id,
            stage="region",
            reason=f"the region {region.phrase!r} is on an image that was not read",
        )
        for region in ref.regions
        if region.image_id not in images
    ]
    return kept, lost
