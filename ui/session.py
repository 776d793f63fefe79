"""What the page keeps of one reader's session. Nothing here is shared between sessions."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ui.overlay import Float, to_field

Grey = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Study:
    """The image being read. ``upload`` keeps an uploaded file in case the server forgets it; ``title`` names no one."""

    title: str
    caption: str = ""
    image_id: str | None = None
    upload: bytes | None = field(default=None, repr=False)
    preview: Grey | None = field(default=None, repr=False)

    @property
    def source(self) -> str | bytes:
        """What to send to the server: the id where there is one."""
        return self.image_id or self.upload or b""


@dataclass(frozen=True)
class Finding:
    """The answer about one finding. ``field`` (h, w) is sigmoid(map) in the image's aspect, for drawing."""

    label: str
    sentence: str
    probability: float
    logit: float
    field: Float


@dataclass(frozen=True)
class Reading:
    """The answer about one image: its size in pixels and its findings in the order they were asked."""

    width: int
    height: int
    model: str
    checksum: str
    threshold: float
    milliseconds: float
    findings: tuple[Finding, ...]

    def find(self, label: str | None) -> Finding | None:
        """The finding of that label."""
        return next((finding for finding in self.findings if finding.label == label), None)

    def colour_index(self, finding: Finding) -> int:
        """Which colour of the palette the finding has throughout the page."""
        return self.findings.index(finding)


@dataclass(frozen=True)
class Session:
    """One reader's session. ``suggested`` is the text last put into the findings box for them."""

    models: tuple[dict[str, Any], ...] = ()
    examples: tuple[dict[str, Any], ...] = ()
    study: Study | None = None
    reading: Reading | None = None
    suggested: str = ""
    connected: bool = False


def to_reading(answer: dict[str, Any]) -> Reading:
    """The server's answer to a query with maps."""
    width, height = answer["image"]["width"], answer["image"]["height"]
    return Reading(
        width=width,
        height=height,
        model=answer["model"],
        checksum=answer["checksum"],
        threshold=answer["threshold"],
        milliseconds=sum(answer["timings_ms"].values()),
        findings=tuple(_finding(result, width, height) for result in answer["results"]),
    )


def _finding(result: dict[str, Any], width: int, height: int) -> Finding:
    data = result["map"]
    grid = np.frombuffer(base64.b64decode(data["values"]), dtype="<f4").reshape(data["shape"])
    return Finding(
        label=result["prompt"],
        sentence=result["sentence"],
        probability=result["probability"],
        logit=result["logit"],
        field=to_field(grid, tuple(data["extent"]), width, height),
    )
