"""Open-I, the chest films of Indiana University (datasets spec, 1.5 and 2.1).

::

    NLMCXR_reports.tgz  or  ecgen-radiology/1.xml ... 3999.xml
    CXR1_1_IM-0001-3001.png  or  1/1_IM-0001-3001.dcm  or  1_IM-0001-3001.dcm.png (a mirror's name), under the root
    indiana_projections.csv     optional: uid, filename, projection, for PNG files do not say their view

It has no published split: all of it is test, unless ``splits.csv`` (study_id, split) lies in the root. Each report
is a study of a patient of its own. The 104 reports without images are refused when their files are to be read.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from xml.etree import ElementTree

import fsspec

from rayzero.reports.layouts import open_i_report
from rayzero.storage import open_url
from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.labels import Closed, Splits
from rayzero.studies.corpora.tables import existing, find_files, read_rows
from rayzero.studies.errors import CorpusError
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import View

LABELS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax", "Edema",
    "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia", "Fracture", "Opacity", "Lesion", "Calcified Granuloma",
    "Granuloma",
)  # fmt: skip
_ZEROS = dict.fromkeys(LABELS, 0)
_SYNONYMS = {
    "Atelectasis": ("atelectases",),
    "Infiltration": ("infiltrate",),
    "Pleural_Thickening": ("pleural thickening",),
}
_ARCHIVE, _FOLDER, _VIEWS = "NLMCXR_reports.tgz", "ecgen-radiology", "indiana_projections.csv"
_PROJECTIONS: dict[str, View] = {"Frontal": "frontal", "Lateral": "lateral"}
_TWICE = re.compile(r"^(\d+)_\1_(?=IM)")  # CXR1_1_IM-... is filed as 1/1_IM-...


class OpenI:
    """Reports with their films and MeSH terms."""

    name = "open-i"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        splits = Splits(root, default="test")
        paths = find_files(root, (".png", ".dcm"), key=_image_key)
        views = _read_views(root)
        for name, data in _documents(root):
            try:
                yield self._ref(data, splits, paths, views)
            except (ValueError, ElementTree.ParseError) as error:
                yield Quarantined(study_id="", file=name, stage="table", reason=f"not an Open-I report: {error}")

    def _ref(self, data: bytes, splits: Splits, paths: Mapping[str, str], views: Mapping[str, View]) -> StudyRef:
        tree = ElementTree.fromstring(data)
        uid = tree.find("uId")
        study_id = uid.get("id", "") if uid is not None else ""
        if not study_id:
            raise ValueError("uId has no id")
        images = [image.get("id", "") for image in tree.iter("parentImage")]
        terms = [node.text or "" for node in tree.iterfind("MeSH/automatic")]
        return StudyRef(
            study_id=study_id,
            patient_id=study_id,
            corpus=self.name,
            split=splits.of(study_id, study_id),
            files=tuple(
                FileRef(
                    image_id=image, path=paths.get(_image_key(image), f"{image}.png"), view=views.get(_image_key(image))
                )
                for image in images
            ),
            report=open_i_report(tree),
            labels=Closed(_ZEROS, labels_of(terms)),
        )


def labels_of(terms: Iterable[str]) -> list[str]:
    """The classes whose name, or a synonym, is part of the automatic MeSH terms in lower case.

    So Calcified Granuloma entails Granuloma, and a pericardial effusion is an Effusion: the published rule.
    """
    text = "|".join(sorted(terms)).lower()
    return [name for name in LABELS if any(word in text for word in (name.lower(), *_SYNONYMS.get(name, ())))]


def _image_key(name: str) -> str:
    """One key for an image id, its PNG, its DICOM file and the mirror's name of it."""
    stem = PurePosixPath(name).name.removesuffix(".png").removesuffix(".dcm").removeprefix("CXR")
    return _TWICE.sub(r"\1_", stem)


def _read_views(root: str) -> dict[str, View]:
    if not existing(root, [_VIEWS]):
        return {}
    views: dict[str, View] = {}
    for row in read_rows(root, _VIEWS, ("filename", "projection"), optional=()):
        try:
            views[_image_key(row["filename"])] = row.one_of("projection", _PROJECTIONS)
        except ValueError as error:
            raise CorpusError(f"{_VIEWS}, row {row.number}: {error}") from None
    return views


def _documents(root: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the reports, in the order of their numbers. Raises CorpusError when there are none."""
    fs, base = open_url(root)
    if existing(root, [_ARCHIVE]):
        with fsspec.open(fs.unstrip_protocol(f"{base}/{_ARCHIVE}"), "rb") as file:
            archive = io.BytesIO(file.read())
        try:
            with tarfile.open(fileobj=archive) as tar:
                members = [member for member in tar.getmembers() if member.name.endswith(".xml")]
                documents = {m.name: handle.read() for m in members if (handle := tar.extractfile(m)) is not None}
        except (tarfile.TarError, EOFError, OSError) as error:
            raise CorpusError(f"{_ARCHIVE} is damaged ({error}); fetch it again") from None
    else:
        found = fs.glob(f"{base}/{_FOLDER}/*.xml")
        documents = (
            {f"{_FOLDER}/{PurePosixPath(path).name}": data for path, data in fs.cat(found).items()} if found else {}
        )
    if not documents:
        raise CorpusError(f"{root} holds neither {_ARCHIVE} nor {_FOLDER}/*.xml; is it the root of this corpus?")
    yield from sorted(documents.items(), key=lambda item: _number(item[0]))


def _number(name: str) -> tuple[int, str]:
    stem = PurePosixPath(name).stem
    return (int(stem) if stem.isdigit() else 0), stem
