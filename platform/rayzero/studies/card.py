"""The data card of a lake: one self-contained page that says what is in it and what was left out."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image as PillowImage

from rayzero.studies.counts import MOST_SENTENCES
from rayzero.studies.lake import Lake, read_row_group, replace_file
from rayzero.studies.preprocess import to_unit
from rayzero.studies.study import Image, Study

_THUMBNAILS = 12
_THUMBNAIL_SIDE = 300
_LONGEST_LIST = 12


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: ``number`` and its ``share`` of the whole, ``width`` in percent of the longest bar."""

    name: str
    number: int
    share: float
    width: float


@dataclass(frozen=True)
class FindingBar:
    """Sentences about one finding, by status, as widths in percent of the most mentioned one."""

    name: str
    numbers: Mapping[str, int]
    widths: Mapping[str, float]


@dataclass(frozen=True)
class Thumbnail:
    """A study drawn from the lake: its first radiograph as a data URI, and what it says about it."""

    source: str
    study_id: str
    detail: str
    sentences: tuple[str, ...]


def write_card(lake: Lake) -> str:
    """Write ``card.html`` into the folder of ``lake`` and return its URL. Raises LakeError or OSError."""
    url = f"{lake.url}/card.html"
    replace_file(url, render_card(lake).encode())
    return url


def render_card(lake: Lake) -> str:
    """The card as HTML. Reads the row groups that the thumbnails come from; all else is in the lake's counts."""
    quarantine = lake.quarantine()
    reasons = Counter((item.stage, item.reason) for item in quarantine)
    counts = lake.counts
    environment = Environment(
        loader=PackageLoader("rayzero.studies", "."), autoescape=select_autoescape(), undefined=StrictUndefined
    )
    charts = {
        "Split": bars(counts["split"]),
        "View": bars(counts["view"]),
        "Polarity of the files": bars(counts["polarity"]),
        "Bits stored": bars({str(int(name)): number for name, number in counts["bits"].items()}, ordered=True),
        "Size in pixels": bars(counts["pixels"]),
        "Pixel spacing": bars(counts["spacing"]),
        "Display window": bars(counts["display"]),
        "Report sections": bars(counts["sections"]),
        "Sentences in a study": bars(
            {_sentences(int(name)): number for name, number in counts["sentences"].items()}, ordered=True
        ),
    }
    return environment.get_template("card.html").render(
        lake=lake,
        total={name: counts["total"].get(name, 0) for name in ("studies", "images", "sentences", "without_sentences")},
        charts=charts,
        findings=finding_bars(counts),
        reasons=reasons.most_common(_LONGEST_LIST),
        more_reasons=max(len(reasons) - _LONGEST_LIST, 0),
        quarantined=len(quarantine),
        examples=thumbnails(lake),
    )


def bars(counts: Mapping[str, int], *, ordered: bool = False) -> list[Bar]:
    """``counts`` as bars, largest first, or in the given order; the smallest ones are added up beyond a dozen."""
    total, longest = sum(counts.values()), max(counts.values(), default=0)
    if not total:
        return []
    rows = list(counts.items()) if ordered else sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(rows) > _LONGEST_LIST + 1:
        rest = rows[_LONGEST_LIST:]
        rows = [*rows[:_LONGEST_LIST], (f"{len(rest)} others", sum(number for _, number in rest))]
        longest = max(number for _, number in rows)
    return [Bar(name, number, number / total, 100 * number / longest) for name, number in rows]


def finding_bars(counts: Mapping[str, Mapping[str, int]]) -> list[FindingBar]:
    """The findings of all sentences, the most mentioned first."""
    statuses = ("present", "uncertain", "absent")
    sums = Counter[str]()
    for status in statuses:
        sums.update(counts[status])
    longest = max(sums.values(), default=1)
    rows = []
    for name, _ in sums.most_common(2 * _LONGEST_LIST):
        numbers = {status: counts[status].get(name, 0) for status in statuses}
        rows.append(FindingBar(name, numbers, {status: 100 * n / longest for status, n in numbers.items()}))
    return rows


def thumbnails(lake: Lake) -> list[Thumbnail]:
    """A dozen studies at equal steps through the lake; one row group is in memory at a time."""
    groups = lake.row_groups()
    total = sum(group.num_rows for group in groups)
    wanted = set(np.linspace(0, total - 1, min(_THUMBNAILS, total)).round().astype(int).tolist())
    drawn, first = [], 0
    for group in groups:
        rows = range(first, first + group.num_rows)
        first += group.num_rows
        if wanted.isdisjoint(rows):
            continue
        for row, study in zip(rows, read_row_group(group), strict=True):
            image = next((image for image in study.images if len(image.shape) == 2), None)
            if row in wanted and image is not None:
                drawn.append(_thumbnail(study, image))
    return drawn


def _thumbnail(study: Study, image: Image) -> Thumbnail:
    picture = PillowImage.fromarray(np.round(to_unit(image, "voi") * 255).astype(np.uint8))
    picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), PillowImage.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=86)
    spacing = f", {image.spacing_mm[0]:.3g} mm" if image.spacing_mm else ""
    return Thumbnail(
        source=f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}",
        study_id=study.study_id,
        detail=f"{image.view}, {image.shape[0]} x {image.shape[1]}, {image.bits} bits{spacing}",
        sentences=tuple(sentence.text for sentence in study.sentences if sentence.status != "absent")[:4],
    )


def _sentences(number: int) -> str:
    return f"{number} or more" if number == MOST_SENTENCES else str(number)
