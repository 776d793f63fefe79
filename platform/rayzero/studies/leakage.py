"""Keeps evaluation sets out of a lake that will be trained on (datasets spec, section 10, trap 10).

A study leaves when its patient is in an evaluation set. Patients are recognised by id among corpora that share ids
(MIMIC-CXR and MS-CXR; CheXpert, CheXpert Plus, 5x200 and 8x200), and by an image everywhere: RSNA, SIIM-ACR and
ChestX-Det10 are images of NIH ChestX-ray14 under new names, some of them compressed again. Equal pixels have equal
SHA-256; a recompressed, resized or inverted copy has a near-equal ``signature``, up to its sign, and so has one whose
grey levels were mapped by any rising curve: other bits, gamma, a histogram equalised as a whole, as that of
MIMIC-CXR-JPG is. One that was cropped, turned, or equalised region by region (CLAHE) may have not: where a set has
such copies, name them by id as well. Studies of the test split stay: nothing is trained on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
import ray
from numpy.lib.stride_tricks import sliding_window_view

from rayzero.cluster import join
from rayzero.studies.corpora import StudyRef, chexpert, load, mimic
from rayzero.studies.corpora.tables import Row, read_rows
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined, RowGroup, normal_url, open_lake, read_row_group
from rayzero.studies.study import Image
from rayzero.studies.tasks import mapped

GRID = 48
MIN_CORRELATION = 0.965
"""Signatures that correlate at least this much, either way, are of one film.

Measured on films of 320 pixels of 120 simulated patients: copies through JPEG of quality 20 to 90, at half the size,
at other bits, by gamma 0.5 or with an equalised histogram stay above 0.985 (those of a real film above 0.99). Of the
7,140 pairs of patients, whose anatomy is more alike than people's, none is above 0.942: at 95 % confidence, one in
2,400 at most is taken for one film. Copies of fewer than 160 pixels a side, and by CLAHE (0.87 to 0.97), may pass.
"""
_AROUND = 2  # cells on each side of one: what a smaller neighbourhood leaves is mostly noise
_EQUAL = 1 / 8  # standard deviations of brightness: nearer cells share a rank in part, or noise would rank flat ones
CHUNK_STUDIES = 64
"""Studies that one task compares."""

_KINDS = ("by patient id", "by study or image id", "by equal pixels", "by a near-equal image")
"""By what a patient is recognised, the surest first."""
_BY_PATIENT, _BY_ID, _BY_PIXELS, _BY_LIKENESS = _KINDS

_FAMILIES = {
    **dict.fromkeys(("mimic-cxr", "mimic-cxr-jpg", "mimic-cxr-jpg-negbio", "ms-cxr", "ms-cxr-medrpg"), "mimic-cxr"),
    **dict.fromkeys(("chexpert", "chexpert-plus", "chexpert-5x200", "chexpert-8x200"), "chexpert"),
    **dict.fromkeys(("nih-chestxray14", "nih-chestxray14-community"), "nih-chestxray14"),
    **dict.fromkeys(("rsna-pneumonia", "rsna-pneumonia-medklip", "rsna-pneumonia-alta"), "rsna-pneumonia"),
    **dict.fromkeys(("vindr-cxr", "vindr-cxr-kaggle"), "vindr-cxr"),
    **dict.fromkeys(("ct-rate", "ct-rate-fixed"), "ct-rate"),
    **dict.fromkeys(("bimcv-covid19", "bimcv-covid19-cxr"), "bimcv-covid19"),
}
_ID_COLUMNS = ("patient_id", "study_id", "image_id", "sha256")
_PATH_COLUMNS = ("Path", "path")
_PATHS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "mimic-cxr": mimic.ids_of_path,
    "chexpert": lambda path: chexpert.split_path(path)[1:],
}
Signatures = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Known:
    """What identifies the images of an evaluation set. ``signatures`` is (N, GRID * GRID) float32.

    Ids are those of the corpus to be ingested, and none when the set's corpus has ids of its own.
    """

    source: str
    patients: frozenset[str] = frozenset()
    studies: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    signatures: Signatures = field(default_factory=lambda: np.zeros((0, GRID * GRID), np.float32))

    @property
    def has_ids(self) -> bool:
        """Whether patients, studies or images are known by ids of the corpus to be ingested."""
        return bool(self.patients or self.studies or self.images)

    @property
    def has_pixels(self) -> bool:
        """Whether images are known by what they show."""
        return bool(self.hashes) or len(self.signatures) > 0


@dataclass(frozen=True)
class Match:
    """A patient recognised in an evaluation set, and by what."""

    patient_id: str
    source: str
    by: str


@dataclass(frozen=True)
class Excluded:
    """What exclusion leaves: ``refs``, an entry for each study left out, and their number by source.

    ``strangers`` are the sources that name ids of the corpus, not one of which it has: most often they are written
    otherwise there, or are of another copy.
    """

    refs: list[StudyRef]
    entries: list[Quarantined]
    counts: Mapping[str, int]
    strangers: tuple[str, ...]


def exclude(corpus_name: str, root: str, refs: Sequence[StudyRef], sources: Sequence[str], *, workers: int) -> Excluded:
    """``refs`` without the patients of ``sources``.

    A source is a lake, ``LAKE#split`` for one split of it, or a CSV file (``read_list``). Sets with pixels have every
    image of ``refs`` decoded once for the comparison, as Ray tasks. Raises LakeError or CorpusError.
    """
    known = [read_known(source, corpus_name, workers=workers) for source in sources]
    trained = [ref for ref in refs if ref.split != "test"]
    # A study of the test split that an evaluation set has gives its patient away, who may be trained on elsewhere.
    patients = {ref.patient_id for ref in trained}
    telling = [ref for ref in refs if ref.patient_id in patients]
    matches = {match.patient_id: match for match in match_ids(telling, known)}
    pixels = [one for one in known if one.has_pixels]
    if pixels:
        rest = iter([ref for ref in telling if ref.patient_id not in matches])
        chunks = iter(lambda: list(islice(rest, CHUNK_STUDIES)), [])
        _start(workers)
        shared: Any = ray.put(pixels)
        parts = mapped(
            lambda chunk: match_pixels(chunk, root, ray.get(shared)), chunks, name="match_pixels", most=workers
        )
        matches |= first_matches(chain.from_iterable(parts), sources)
    kept = [ref for ref in refs if ref.split == "test" or ref.patient_id not in matches]
    left = [matches[ref.patient_id] for ref in trained if ref.patient_id in matches]
    names = [ref.study_id for ref in trained if ref.patient_id in matches]
    entries = [
        Quarantined(study_id=name, file="", stage="leakage", reason=f"the patient is in {match.source} ({match.by})")
        for name, match in zip(names, left, strict=True)
    ]
    counts = Counter(match.source for match in left)
    strangers = tuple(one.source for one in known if one.has_ids and not counts[one.source] and not _met(refs, one))
    return Excluded(kept, entries, {source: counts[source] for source in sources}, strangers)


def first_matches(found: Iterable[Match], sources: Sequence[str]) -> dict[str, Match]:
    """One match of each patient: the first source's, and equal pixels before near-equal ones.

    In whatever order they come, for tasks end in any: what is on record of an ingest is the same each time.
    """
    first: dict[str, Match] = {}
    for match in found:
        first[match.patient_id] = min(
            match, first.get(match.patient_id, match), key=lambda one: (sources.index(one.source), _KINDS.index(one.by))
        )
    return first


def read_known(source: str, corpus_name: str, *, workers: int) -> Known:
    """What is known of an evaluation set: a lake, one split of it, or a list. Raises LakeError or CorpusError."""
    if source.lower().endswith((".csv", ".csv.gz", ".csv.zip")):
        return read_list(source, corpus_name)
    url, _, split = source.partition("#")
    groups = open_lake(url).row_groups([split] if split else None)
    _start(workers)
    family = _family(corpus_name)
    parts = list(mapped(lambda group: describe(group, source, family), groups, name="describe", most=workers))
    return Known(
        source,
        patients=frozenset().union(*(part.patients for part in parts)),
        studies=frozenset().union(*(part.studies for part in parts)),
        images=frozenset().union(*(part.images for part in parts)),
        hashes=frozenset().union(*(part.hashes for part in parts)),
        signatures=np.concatenate([Known(source).signatures, *(part.signatures for part in parts)]),
    )


def describe(group: RowGroup, source: str, family: str) -> Known:
    """What is known of one row group of an evaluation lake that bears on a corpus of ``family``.

    Published corpora that share ids are told by them: decoding every image again would find nothing more. All others
    are told by pixels, and by ids too when both are of one corpus.
    """
    patients, studies, images, hashes, signatures = set(), set(), set(), set(), []
    for study in read_row_group(group, columns=("images",)):
        if _family(study.corpus) == family:
            patients.add(study.patient_id)
            studies.add(study.study_id)
            images |= {image.image_id for image in study.images}
            if family in _FAMILIES.values():
                continue
        hashes |= {image.sha256 for image in study.images}
        signatures += [found for image in study.images if (found := signature(image)) is not None]
    stacked = np.stack(signatures) if signatures else Known(source).signatures
    return Known(source, frozenset(patients), frozenset(studies), frozenset(images), frozenset(hashes), stacked)


def read_list(source: str, corpus_name: str) -> Known:
    """An evaluation set as a CSV file of ids of the corpus to be ingested.

    Columns: any of ``patient_id``, ``study_id``, ``image_id`` and ``sha256`` (of the stored pixels); or the ``Path``
    of the published tables of CheXpert 5x200 and 8x200, and ``path`` of MS-CXR. Raises CorpusError.
    """
    folder, _, name = normal_url(source).rpartition("/")
    found: dict[str, set[str]] = {column: set() for column in _ID_COLUMNS}
    for row in read_rows(folder, name, (), optional=(*_ID_COLUMNS, *_PATH_COLUMNS)):
        ids = {column: row.cells[column] for column in _ID_COLUMNS if row.get(column)} or _ids_of_path(row, corpus_name)
        for column, value in ids.items():
            found[column].add(value)
    patients, studies, images, hashes = (frozenset(found[column]) for column in _ID_COLUMNS)
    return Known(source, patients, studies, images, hashes)


def match_ids(refs: Iterable[StudyRef], known: Sequence[Known]) -> Iterator[Match]:
    """The patients of ``refs`` with an id in one of ``known``."""
    for ref in refs:
        for one in known:
            if ref.patient_id in one.patients:
                yield Match(ref.patient_id, one.source, _BY_PATIENT)
            elif ref.study_id in one.studies or any(file.image_id in one.images for file in ref.files):
                yield Match(ref.patient_id, one.source, _BY_ID)
            else:
                continue
            break


def _met(refs: Iterable[StudyRef], known: Known) -> bool:
    """Whether ``refs``, the test split among them, have an id of ``known``."""
    return next(match_ids(refs, [known]), None) is not None


def match_pixels(refs: Iterable[StudyRef], root: str, known: Sequence[Known]) -> list[Match]:
    """The patients of ``refs`` with an image in one of ``known``: the unit of parallel work, free of Ray.

    Images that do not read are passed over: they do not enter the lake either, and ingest puts them on record.
    """
    found: dict[str, Match] = {}
    for ref in refs:
        study = None if ref.patient_id in found else load(ref, root)[0]
        for image in study.images if study else ():
            for one in known:
                by = _seen(image, one)
                if by:
                    found.setdefault(ref.patient_id, Match(ref.patient_id, one.source, by))
    return list(found.values())


def signature(image: Image) -> Signatures | None:
    """Which cells of a grid are brighter than those around them: (GRID * GRID,), of mean 0 and variance 1.

    The mean brightness of each cell, as its rank among all, less the mean rank of the 5 x 5 cells around it. Ranks
    change little by compression, resizing, or any rising map of grey levels, and take the other sign by a falling
    one; without the surroundings they would tell little but that both are chests. None for a volume, and for an image
    that is smaller than the grid or of one brightness.
    """
    if len(image.shape) != 2 or min(image.shape) < GRID:
        return None
    rows, columns = (np.linspace(0, size, GRID + 1).astype(int)[:-1] for size in image.shape)
    sums = np.add.reduceat(np.add.reduceat(image.array(), rows, axis=0, dtype=np.float64), columns, axis=1)
    areas = np.outer(np.diff([*rows, image.shape[0]]), np.diff([*columns, image.shape[1]]))
    means = (sums / areas).ravel().astype(np.float32)
    spread = means.std()
    if spread < 1e-6:
        return None
    means /= _EQUAL * spread
    ranks = np.clip(means[:, None] - means, -1, 1).mean(axis=1).reshape(GRID, GRID)
    framed = np.pad(ranks, _AROUND, mode="edge")
    local = (ranks - sliding_window_view(framed, (2 * _AROUND + 1,) * 2).mean(axis=(2, 3))).ravel()
    standard: Signatures = ((local - local.mean()) / local.std()).astype(np.float32)
    return standard


def _seen(image: Image, known: Known) -> str:
    """By what ``image`` is one of ``known``; "" when it is not."""
    if image.sha256 in known.hashes:
        return _BY_PIXELS
    own = signature(image) if len(known.signatures) else None
    # A copy of the other polarity has the same signature with the other sign.
    if own is not None and float(np.abs(known.signatures @ own).max()) >= MIN_CORRELATION * GRID * GRID:
        return _BY_LIKENESS
    return ""


def _ids_of_path(row: Row, corpus_name: str) -> Mapping[str, str]:
    """The ids in a published path. Raises CorpusError when the row has none, or paths of another corpus."""
    path = next((row.cells[column] for column in _PATH_COLUMNS if row.get(column)), "")
    read = _PATHS.get(_family(corpus_name))
    try:
        if not path or read is None:
            raise ValueError(f"has none of {', '.join(_ID_COLUMNS)}, and no path of {corpus_name}")
        return {column: value for column, value in zip(_ID_COLUMNS, read(path), strict=False) if value}
    except ValueError as error:
        raise CorpusError(f"{row.table}, row {row.number}: {error}") from None


def _family(corpus_name: str) -> str:
    """Corpora of one family name the same patients and images alike."""
    return _FAMILIES.get(corpus_name, corpus_name)


def _start(workers: int) -> None:
    if not ray.is_initialized():
        join(cpus=workers, log_to_driver=False)
