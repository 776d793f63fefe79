"""What every corpus offers: cheap references to its studies, and one way to load a reference.

A corpus reads tables alone. The files of a study are read by ``load``, in parallel and on any machine that
reaches the corpus folder.
"""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal, Protocol, cast, get_args

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from rayzero.reports.sections import parse_report
from rayzero.reports.sentences import extract_sentences
from rayzero.storage import open_url
from rayzero.studies.corpora.regions import place
from rayzero.studies.corpora.tables import Row
from rayzero.studies.errors import CorpusError, StudyFileError
from rayzero.studies.kinds import check_count, is_litter, is_volume
from rayzero.studies.lake import MAX_STUDY_BYTES, Quarantined
from rayzero.studies.sandbox import FILM_LIMITS, VOLUME_LIMITS, shared_sandbox
from rayzero.studies.study import Image, Region, Report, Split, Study, View
from rayzero.studies.voxels import VolumeHeader

_HEAD_BYTES = 512  # tell a volume from a radiograph
_VOLUME_ENDINGS = ("/", ".nii", ".nii.gz", ".npz", ".zip")

REPORT_BYTES = 2**20
"""The longest file of a report. What is longer is something else, and every sentence of it would be searched."""

ATTRIBUTES_BYTES = 2**24
"""The longest file of DICOM attributes: a display table of 65,536 entries takes less than one MiB as JSON."""

_PASSING = {
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
}  # fmt: skip
"""What a disk, a mount or a process may suffer from for a while, whichever file is read."""


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """An image file: its id in the lake, and its path relative to the corpus root.

    A path that ends in "/" is the folder of a DICOM CT series. ``view`` is what the corpus's own table says, which
    outranks the file's header. ``size`` (height, width) is the frame in which the corpus measures regions on this
    image; None when its tables do not say. ``header`` is what they say of a volume whose file says nothing, or is
    wrong. ``attributes_file`` (relative path) holds the DICOM attributes of a PNG of stored values, as JSON.
    """

    image_id: str
    path: str
    view: View | None = None
    size: tuple[int, int] | None = None
    header: VolumeHeader | None = None
    attributes_file: str = ""


@dataclass(frozen=True, kw_only=True)
class StudyRef:
    """A study before its files are read.

    ``report`` is already in sections or a text; when it is "", the text is that of ``report_file`` (relative path).
    ``parse`` finds the sections of a text.
    """

    study_id: str
    patient_id: str
    corpus: str
    split: Split
    study_time: datetime | None = None
    prior_study_id: str | None = None
    files: tuple[FileRef, ...] = ()
    report: Report | str = ""
    report_file: str = ""
    parse: Callable[[str], Report] = parse_report
    labels: Mapping[str, int] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()

    @property
    def has_volume(self) -> bool:
        """Whether a volume is among its files, as far as tables and names tell: what memory to expect."""
        return any(file.header is not None or file.path.lower().endswith(_VOLUME_ENDINGS) for file in self.files)


class Corpus(Protocol):
    """A published collection, or the layout of one's own."""

    @property
    def name(self) -> str:
        """What ``--corpus`` calls it."""
        ...

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

    A report that is missing, undecodable or too long is quarantined and the study kept with an empty one: it still
    serves image-only training and evaluation by labels.
    """
    fs, base = open_url(root)
    refused: list[Quarantined] = []
    images: list[Image] = []
    for file in ref.files:
        try:
            image = _read_file(fs, base, file)
            if sum(len(one.pixels) for one in [*images, image]) > MAX_STUDY_BYTES:
                reason = f"with it the images of the study take more than {MAX_STUDY_BYTES:,} bytes, a lake's limit"
                raise StudyFileError("study", reason)
            images.append(replace(image, view=file.view) if file.view else image)
        except StudyFileError as error:
            refused.append(_refusal(ref, file.path, error))
    if not images:
        reason = "the study lists no image" if not ref.files else "none of its images can be read"
        return None, [*refused, Quarantined(study_id=ref.study_id, file="", stage="study", reason=reason)]
    text = ref.report
    if not text and ref.report_file:
        try:
            text = _decode(_read(fs, base, ref.report_file, REPORT_BYTES))
        except StudyFileError as error:
            refused.append(_refusal(ref, ref.report_file, error, stage="report"))
    report = ref.parse(text) if isinstance(text, str) else text
    regions, lost = place(ref.study_id, ref.regions, images, {file.image_id: file.size for file in ref.files})
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
        labels=dict(ref.labels),
        regions=regions,
    )
    return study, refused + lost


def common_fields(row: Row) -> tuple[Split, datetime | None, str | None]:
    """Split, time (naive UTC) and prior study of a table row. Raises ValueError naming the bad cell."""
    if not row["study_id"] or not row["patient_id"]:
        raise ValueError("study_id or patient_id is blank")
    if row["split"] not in get_args(Split):
        raise ValueError(f"split is {row['split']!r}; give one of {', '.join(get_args(Split))}")
    time = datetime.fromisoformat(row["study_time"]) if row.get("study_time") else None
    if time is not None and time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    return cast(Split, row["split"]), time, row.get("prior_study_id") or None


def _read_file(fs: AbstractFileSystem, base: str, file: FileRef) -> Image:
    if file.path.endswith("/"):
        return _read_series(fs, base, file)
    data = _read(fs, base, file.path)
    if is_volume(data):
        return shared_sandbox(VOLUME_LIMITS).read_volume(data, name=file.image_id, header=file.header)
    attributes = ""
    if file.attributes_file:
        try:
            attributes = _decode(_read(fs, base, file.attributes_file, ATTRIBUTES_BYTES), "it")
        except StudyFileError as error:
            reason = f"the JSON file of its DICOM attributes, which say its polarity, does not read ({error.reason})"
            raise StudyFileError("header", reason) from None
    return shared_sandbox().read_image(data, name=file.image_id, attributes=attributes)


def _read_series(fs: AbstractFileSystem, base: str, file: FileRef) -> Image:
    """The volume in a folder, whose files may be named after a patient: messages count them in the order of names."""
    folder = _inside(base, file.path)
    try:
        paths = [str(item["name"]) for item in fs.ls(folder, detail=True) if item["type"] == "file"]
    except FileNotFoundError:
        raise StudyFileError("open", "the folder does not exist") from None
    except Exception as error:  # a store's client raises types of its own
        raise _unreadable(fs, folder, "folder", error) from error
    names = [name for name in sorted(posixpath.basename(path) for path in paths) if not is_litter(name)]
    check_count(len(names))

    def slices() -> Iterator[bytes]:
        for k, name in enumerate(names, 1):
            try:
                yield _read(fs, base, file.path + name)
            except StudyFileError as error:
                raise StudyFileError(error.stage, f"file {k} of the series: {error.reason}") from error

    return shared_sandbox(VOLUME_LIMITS).read_series(slices(), name=file.image_id)


def _inside(base: str, path: str) -> str:
    """The full path of ``path``, which a table named: it may not point outside the corpus."""
    full = posixpath.normpath(f"{base}/{path}")
    if path.startswith("/") or not full.startswith(posixpath.normpath(base) + "/"):
        raise StudyFileError("open", "the path leads outside the corpus folder")
    return full


def _read(fs: AbstractFileSystem, base: str, path: str, limit: int | None = None) -> bytes:
    full = _inside(base, path)
    try:
        size = fs.size(full)
        most = limit or FILM_LIMITS.file_bytes
        if size > most and limit is None and is_volume(fs.cat_file(full, start=0, end=_HEAD_BYTES)):
            most = VOLUME_LIMITS.file_bytes
        if size > most:
            raise StudyFileError("open", f"a file of {size:,} bytes is beyond {most:,}")
        data: bytes = fs.cat_file(full)
    except FileNotFoundError:
        raise StudyFileError("open", "the file does not exist") from None
    except StudyFileError:
        raise
    except Exception as error:  # a store's client raises types of its own
        raise _unreadable(fs, full, "file", error) from error
    return data


def _unreadable(
    fs: AbstractFileSystem, path: str, kind: Literal["file", "folder"], error: Exception
) -> StudyFileError | CorpusError:
    """What to raise for ``error`` on the file or folder at ``path``: whether it is to blame, or what it lies on.

    A store's requests have been repeated (``rayzero.storage``); one that it refuses is so for the key or the clock,
    which are the same for every file.
    """
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(fs, LocalFileSystem):
        passing = isinstance(error, MemoryError) or getattr(error, "errno", None) in _PASSING
    else:
        passing = not isinstance(error, IsADirectoryError | NotADirectoryError)
    if passing:
        remedy = "run this again later"
        if isinstance(error, PermissionError):
            # Where listing is not allowed, S3 answers 403 for what does not exist.
            remedy = (
                "see that the key is valid and may list the bucket, and that the clock is right, then run this again"
            )
        return CorpusError(f"{fs.unstrip_protocol(path)} cannot be read now ({reason}); {remedy}")
    return StudyFileError("open", f"the {kind} cannot be read: {reason}")


def _decode(data: bytes, what: str = "the report") -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyFileError("report", f"{what} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _refusal(ref: StudyRef, path: str, error: StudyFileError, stage: str = "") -> Quarantined:
    return Quarantined(study_id=ref.study_id, file=path, stage=stage or error.stage, reason=error.reason)
