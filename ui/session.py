"""What the page keeps of one reader's session. Nothing here is shared between sessions."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ui.fields import Float, Grid, squash

Grey = np.ndarray[Any, np.dtype[np.uint8]]
Kind = Literal["radiograph", "volume"]
Cursor = tuple[int, int, int]

COMPANIONS = ("lateral", "prior_frontal", "prior_lateral")


@dataclass(frozen=True)
class Study:
    """The image being read. ``upload`` keeps an uploaded file in case the server forgets it; ``title`` names no one.

    ``file`` is the path of an example's file on the server, ``companions`` are further films by their role.
    """

    title: str
    kind: Kind
    caption: str = ""
    image_id: str | None = None
    file: str | None = None
    upload: bytes | None = field(default=None, repr=False)
    preview: Grey | None = field(default=None, repr=False)
    companions: dict[str, str | bytes] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str | bytes:
        """What to send to the server: the id where there is one."""
        return self.image_id or self.upload or b""


@dataclass(frozen=True)
class Finding:
    """The answer about one finding.

    ``flat`` (h, w) is sigmoid(map) of a film, for drawing; None of a volume, whose ``grid`` is sampled by the plane.
    ``interval`` is that of the probability, where the server gives one. ``peak`` is (z, y, x), z 0 on a film;
    ``slice_peaks`` the highest sigmoid(map) of each slice of a volume.
    """

    label: str
    sentence: str
    probability: float
    logit: float
    peak: Cursor
    grid: Grid = field(repr=False)
    flat: Float | None = field(default=None, repr=False)
    interval: tuple[float, float] | None = None
    slice_peaks: tuple[float, ...] = field(default=(), repr=False)

    @property
    def span(self) -> tuple[float, float]:
        """The range of sigmoid(map), of a volume over all its slices: a colour means the same on each."""
        values = self.flat if self.flat is not None else squash(self.grid.values)
        return float(values.min()), float(values.max())


@dataclass(frozen=True)
class Window:
    """The stored values of a film, ``lowest`` to ``highest``, and its own window of them."""

    lowest: int
    highest: int
    level: float
    width: float

    @property
    def shown(self) -> tuple[int, int]:
        """Level and width as whole values, as they stand on the sliders."""
        return round(self.level), max(1, round(self.width))


@dataclass(frozen=True)
class Reading:
    """The answer about one image and its findings in the order they were asked.

    ``shape`` is (H, W) of a film and (Z, Y, X) of a volume; ``preview`` is where the server draws a film, whose grey
    values are ``window``; ``answer`` is the server's own document.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    model: str
    checksum: str
    calibrated: bool
    threshold: float
    milliseconds: float
    findings: tuple[Finding, ...]
    preview: str = ""
    window: Window | None = None
    slice_preview: str | None = None
    answer: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def volume(self) -> bool:
        """Whether it is of a CT volume."""
        return len(self.shape) == 3

    @property
    def ranked(self) -> list[Finding]:
        """The findings, the likeliest first."""
        return sorted(self.findings, key=lambda finding: -finding.probability)

    def find(self, label: str | None) -> Finding | None:
        """The finding of that label."""
        return next((finding for finding in self.findings if finding.label == label), None)

    def colour_index(self, finding: Finding) -> int:
        """Which colour of the palette the finding has throughout the page."""
        return self.findings.index(finding)


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    name: str
    study: Study
    reading: Reading

    @property
    def short(self) -> str:
        """The name without what it says of the study."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Comparison:
    """Two readings of the same findings: by two models, or of a prior study (left) and the current one (right)."""

    left: Side
    right: Side
    of_time: bool

    @property
    def pairs(self) -> list[tuple[Finding, Finding]]:
        """Findings of the left and the right reading, those that differ most first."""
        right = self.right.reading
        both = [(one, other) for one in self.left.reading.findings if (other := right.find(one.label))]
        return sorted(both, key=lambda pair: -abs(pair[1].probability - pair[0].probability))


@dataclass
class Turn:
    """Counts a session's questions, so that an answer that comes after a newer question is let go."""

    number: int = 0

    def take(self) -> int:
        """The number of a new question."""
        self.number += 1
        return self.number


# Compared by identity: Gradio hashes states, and this one holds whole files.
@dataclass(frozen=True, eq=False)
class Session:
    """One reader's session.

    ``suggested`` is the text last put into the findings box for them; ``pending`` says that the server could not
    answer the last question yet; ``point`` is the place pointed at, (z, y, x). ``turn`` is one for all states of a
    session: Gradio copies the first state for each reader.
    """

    models: tuple[dict[str, Any], ...] = ()
    examples: tuple[dict[str, Any], ...] = ()
    indexes: tuple[dict[str, Any], ...] = ()
    study: Study | None = None
    reading: Reading | None = None
    point: Cursor | None = None
    comparison: Comparison | None = None
    suggested: str = ""
    connected: bool = False
    pending: bool = False
    turn: Turn = field(default_factory=Turn)

    def model(self, name: str | None) -> dict[str, Any] | None:
        """What the server says of that model, of its default one for None."""
        return next((model for model in self.models if name in (None, model["name"])), None)

    def models_for(self, kind: Kind) -> list[dict[str, Any]]:
        """The models that read such images."""
        return [model for model in self.models if reads(model) == kind]


def reads(model: dict[str, Any]) -> Kind:
    """What images a model reads."""
    return "volume" if model["input"] == "volume" else "radiograph"


def kind_of(data: bytes) -> Kind:
    """What a file holds, by its first bytes: archives, gzip and NIfTI hold volumes."""
    nifti = data[344:348] in (b"n+1\0", b"ni1\0") or data[4:8] in (b"n+2\0", b"ni2\0")
    return "volume" if nifti or data[:2] == b"\x1f\x8b" or data[:4] == b"PK\x03\x04" else "radiograph"


def to_reading(answer: dict[str, Any], *, calibrated: bool) -> Reading:
    """The server's answer to a query with maps."""
    image = answer["image"]
    shape = tuple(size for size in (image["slices"], image["height"], image["width"]) if size is not None)
    return Reading(
        shape=shape,
        spacing_mm=tuple(image["spacing_mm"] or (1.0,) * len(shape)),
        model=answer["model"],
        checksum=answer["checksum"],
        calibrated=calibrated,
        threshold=answer["threshold"],
        milliseconds=sum(answer["timings_ms"].values()),
        findings=tuple(_finding(result, shape) for result in answer["results"]),
        preview=image["preview"],
        window=None if image["grey"] is None else Window(**image["grey"]),
        slice_preview=image["slice_preview"],
        answer=answer,
    )


def _finding(result: dict[str, Any], shape: tuple[int, ...]) -> Finding:
    data = result["map"]
    values = np.frombuffer(base64.b64decode(data["values"]), dtype="<f4").reshape(data["shape"])
    x0, y0, x1, y1 = data["extent"]
    bounds = ((y0, y1), (x0, x1))
    volume = len(shape) == 3
    grid = Grid(values, shape, (tuple(data["depth"]), *bounds) if volume else bounds)
    peak = result["peak"]
    return Finding(
        label=result["prompt"],
        sentence=result["sentence"],
        probability=result["probability"],
        logit=result["logit"],
        peak=(peak["z"] or 0, peak["y"], peak["x"]),
        grid=grid,
        flat=None if volume else grid.film(),
        interval=None if result["probability_interval"] is None else tuple(result["probability_interval"]),
        slice_peaks=tuple(result["slice_peaks"] or ()),
    )
