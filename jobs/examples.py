"""Example studies for the page: held-out films or volumes that between them show every finding, with their reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rayzero.studies.lake import Lake
from rayzero.studies.study import Study

_COLUMNS = ["study_id", "patient_id", "labels", "sentences", "report"]


def write_examples(
    corpus: Path, lake: Lake, folder: Path, *, image: str, findings: Sequence[str], count: int = 12
) -> None:
    """Copy ``count`` test images of a phantom ``corpus`` to ``folder`` with the ``examples.json`` that serving reads.

    ``image`` is the file of a study: ``pa.dcm`` (a real film is added to those, where one is installed) or
    ``ct.nii.gz``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for study in _chosen(list(lake.read(splits=["test"], columns=_COLUMNS)), findings, count):
        source = corpus / "files" / study.patient_id / study.study_id / image
        name = f"{study.study_id}.{image.split('.', 1)[1]}"
        shutil.copyfile(source, folder / name)
        entries.append(_entry(study, name))
    film = _real_film() if image == "pa.dcm" else None
    if film is not None:
        shutil.copyfile(film, folder / "real-film.dcm")
        entries.append(
            {
                "id": "real-film",
                "file": "real-film.dcm",
                "title": "A real film (NEMA WG04 sample)",
                "caption": "Not simulated: a model pretrained on phantoms alone has not seen such a film.",
                "suggested_prompts": ["cardiomegaly", "pleural effusion", "pneumothorax"],
            }
        )
    (folder / "examples.json").write_text(json.dumps(entries, indent=2))


def _chosen(studies: list[Study], findings: Sequence[str], count: int) -> Iterator[Study]:
    """Studies that add the most findings not yet shown, smallest id first; the last one is normal."""
    present = {s.study_id: {name for name, value in s.labels.items() if value == 1} for s in studies}
    left, shown = sorted(studies, key=lambda study: study.study_id), set[str]()
    for _ in range(count - 1):
        # One or two findings make a readable example; more make a puzzle.
        few = [study for study in left if 1 <= len(present[study.study_id]) <= 2]
        if not few:
            break
        best = max(few, key=lambda study: len(present[study.study_id].intersection(findings) - shown))
        shown |= present[best.study_id]
        left.remove(best)
        yield best
    yield from [study for study in left if not present[study.study_id]][:1]


def _entry(study: Study, file: str) -> dict[str, Any]:
    present = [name for name, value in sorted(study.labels.items()) if value == 1]
    return {
        "id": study.study_id,
        "file": file,
        "title": ", ".join(present).capitalize() or "No finding",
        "caption": study.report.impression,
        "suggested_prompts": [*present, *[name for name in study.labels if name not in present]][:6],
        "sentences": [sentence.text for sentence in study.sentences],
        "report": study.report.text,
    }


def _real_film() -> Path | None:
    """The chest film that ships in the pydicom-data wheel, where that is installed."""
    try:
        import data_store
    except ImportError:
        return None
    path = Path(data_store.__file__).parent / "data" / "RG1_UNCR.dcm"
    return path if path.is_file() else None
