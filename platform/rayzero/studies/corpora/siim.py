"""SIIM-ACR Pneumothorax Segmentation, stage 1 or 2 (datasets spec, 3.4).

::

    train-rle.csv  or  stage_2_train.csv                        ImageId, EncodedPixels: a lesion a row
    dicom-images-train/<Study UID>/<Series UID>/<SOP UID>.dcm   or any folder under the root

Splits are by image, 70/15/15, or by ``splits.csv`` (study_id, split): a split by rows, as in some published code,
puts lesions of one image in two splits. The images are NIH ChestX-ray14's under other names: ingest that corpus
with ``--exclude`` and this lake before pretraining on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from rayzero.studies.corpora.base import FileRef, StudyRef
from rayzero.studies.corpora.labels import Splits
from rayzero.studies.corpora.regions import union_of_relative_runs
from rayzero.studies.corpora.tables import find_files, one_of_files, read_rows
from rayzero.studies.lake import Quarantined
from rayzero.studies.study import Region

FINDING = "Pneumothorax"
SIZE = (1024, 1024)
_TABLES = ("train-rle.csv", "stage_2_train.csv")
_EMPTY = "-1"


class SiimPneumothorax:
    """Pneumothorax masks; image, study and patient share one id."""

    name = "siim-pneumothorax"

    def studies(self, root: str) -> Iterator[StudyRef | Quarantined]:
        """See ``Corpus.studies``."""
        table = one_of_files(root, _TABLES, "the table of masks")
        paths = find_files(root, (".dcm",), key=lambda path: PurePosixPath(path).stem)
        runs: dict[str, list[str]] = {}
        for row in read_rows(root, table, ("ImageId", "EncodedPixels"), optional=()):
            try:
                runs.setdefault(row.filled("ImageId"), []).append(row.filled("EncodedPixels"))
            except ValueError as error:
                yield row.refused(error, study_id=row["ImageId"])
        splits = Splits(root)
        for image_id, masks in runs.items():
            try:
                yield self._ref(image_id, masks, splits, paths.get(image_id, f"{image_id}.dcm"))
            except ValueError as error:
                yield Quarantined(study_id=image_id, file=table, stage="table", reason=str(error))
        for image_id in sorted(paths.keys() - runs.keys()):
            yield Quarantined(
                study_id=image_id, file=paths[image_id], stage="table", reason=f"{table} does not list it"
            )

    def _ref(self, image_id: str, masks: list[str], splits: Splits, path: str) -> StudyRef:
        regions: tuple[Region, ...] = ()
        if masks != [_EMPTY]:
            if _EMPTY in masks:
                raise ValueError("EncodedPixels says both that there is a mask and that there is none")
            mask = union_of_relative_runs(masks, SIZE)
            regions = (Region(image_id=image_id, finding=FINDING, phrase=FINDING, mask=mask),)
        return StudyRef(
            study_id=image_id,
            patient_id=image_id,
            corpus=self.name,
            split=splits.of(image_id, image_id),
            files=(FileRef(image_id=image_id, path=path),),
            labels={FINDING: int(bool(regions))},
            regions=regions,
        )
