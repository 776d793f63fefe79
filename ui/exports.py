"""What a reader takes along: a picture of what is on the screen, the answer as JSON, findings as DICOM."""

from __future__ import annotations

import base64
import io
import json
from typing import Any, Literal

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from ui.client import Server, ServerError
from ui.fields import PLANES, Float, plane_index, plane_size
from ui.fragments import NOTICE, colour, interval_text, percent_text
from ui.overlay import Grey, Layer, Look, compose, heat_layer, label_layer, locate, outlines
from ui.session import Cursor, Finding, Reading, Session, Study
from ui.viewer import base_film, base_slice

Format = Literal["png", "json", "seg", "sr"]

FORMATS: dict[str, Format] = {
    "PNG": "png",
    "JSON": "json",
    "DICOM SEG": "seg",
    "DICOM SR": "sr",
}

_SIDE = 1024
_MARGIN = 14
_LINE = 26
_BAR = 160


def export(server: Server, session: Session, form: Format, look: Look) -> dict[str, str]:
    """A file's ``name``, media ``type`` and base64 ``data``. Raises ServerError that says what is missing."""
    study, reading = session.study, session.reading
    if study is None or reading is None:
        raise ServerError("Nothing to save yet", "Ask about an image first.")
    if form == "png":
        return _file("maps.png", "image/png", picture(server, study, reading, look, session.point))
    if form == "json":
        return _file("answer.json", "application/json", json.dumps(reading.answer, indent=1).encode())
    data = study.upload or (server.file(study.file) if study.file else b"")
    if not _is_dicom(data):
        detail = "A DICOM object refers to the study it was made from: use a DICOM film or a zipped DICOM series."
        raise ServerError("This image is not DICOM", detail)
    shown = look.labelled if look.mode == "labels" and look.labelled else ()
    labels = [finding.label for finding in reading.findings if not shown or finding.label in shown]
    result = server.dicom(data, labels, reading.model, look.threshold, form)
    return _file(f"findings-{form}.dcm", "application/dicom", result)


def picture(server: Server, study: Study, reading: Reading, look: Look, point: Cursor | None) -> bytes:
    """What the viewer shows as a PNG, with its legend and the notice. Raises ServerError."""
    shown = _shown(reading, look)
    if reading.volume:
        cursor = point or (reading.shape[0] // 2, reading.shape[1] // 2, reading.shape[2] // 2)
        parts = []
        for plane in PLANES:
            index = plane_index(plane, cursor)
            width, height = plane_size(plane, reading.shape, reading.spacing_mm)
            base = base_slice(reading, plane, index, look.window, server.slice)
            fields = [finding.grid.plane(plane, index) for finding in shown]
            parts.append(_draw(_resized(base, width / height, _SIDE // 2), fields, shown, reading, look))
    else:
        base = base_film(study, reading, look, server.windowed)
        fields = [finding.flat for finding in shown if finding.flat is not None]
        height, width = reading.shape
        parts = [_draw(_resized(base, width / height, _SIDE), fields, shown, reading, look)]
    sheet = _sheet(parts, reading, shown, look)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _shown(reading: Reading, look: Look) -> list[Finding]:
    if look.mode == "labels":
        return [finding for finding in reading.findings if finding.label in look.labelled]
    finding = reading.find(look.heat)
    return [] if finding is None else [finding]


def _resized(image: Grey, ratio: float, side: int) -> Grey:
    width, height = (side, round(side / ratio)) if ratio >= 1 else (round(side * ratio), side)
    return np.asarray(PillowImage.fromarray(image).resize((width, height), PillowImage.Resampling.LANCZOS))


def _draw(image: Grey, fields: list[Float], shown: list[Finding], reading: Reading, look: Look) -> PillowImage.Image:
    layer: Layer | None = None
    shades = [colour(reading, finding) for finding in shown]
    if fields:
        labels = look.mode == "labels"
        layer = label_layer(fields, shades, look.threshold) if labels else heat_layer(fields[0], look, shown[0].span)
    out = PillowImage.fromarray(compose(image, layer, look))
    pen = ImageDraw.Draw(out)
    for field, shade in zip(fields, shades, strict=True):
        edge = shade if look.mode == "labels" else "#ffffff"
        if look.contour:
            for line in outlines(field, look.threshold, *out.size):
                _stroke(pen, [(x, y) for x, y in line], edge)
        region = locate(field, look.threshold, *out.size)
        if look.mode != "labels" and look.box and region.box is not None:
            x0, y0, x1, y1 = region.box
            _stroke(pen, [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], edge)
        if look.peak and region.value >= look.threshold:
            (x, y), arm = region.peak, max(out.size) / 60
            _stroke(pen, [(x - arm, y), (x + arm, y)], edge)
            _stroke(pen, [(x, y - arm), (x, y + arm)], edge)
    return out


def _stroke(pen: ImageDraw.ImageDraw, line: list[tuple[float, float]], shade: str) -> None:
    """A line with a dark rim, which stands out on white too."""
    pen.line(line, fill="#111827", width=4)
    pen.line(line, fill=shade, width=2)


def _sheet(parts: list[PillowImage.Image], reading: Reading, shown: list[Finding], look: Look) -> PillowImage.Image:
    """The pictures side by side above a legend."""
    width = max(sum(part.width + _MARGIN for part in parts) + _MARGIN, 640)
    top = max(part.height for part in parts) + 2 * _MARGIN
    legend = reading.ranked
    height = top + _LINE * (len(legend) + 2) + _MARGIN
    sheet = PillowImage.new("RGB", (width, height), "#111827")
    left = _MARGIN
    for part in parts:
        sheet.paste(part, (left, _MARGIN))
        left += part.width + _MARGIN
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for row, finding in enumerate(legend):
        y = top + row * _LINE
        pen.rectangle((_MARGIN, y + 5, _MARGIN + 13, y + 18), fill=colour(reading, finding))
        mark = "  (shown)" if finding in shown else ""
        _bar(pen, (_MARGIN + 24, y + 5), finding, colour(reading, finding))
        pen.text((_MARGIN + 40 + _BAR, y), f"{_told(finding)}   {finding.label}{mark}", "#f9fafb", font)
    known = "calibrated" if reading.calibrated else "not calibrated"
    known += " (whiskers: 95% interval of that)" if any(one.interval for one in legend) else ""
    y = top + len(legend) * _LINE + 6
    told = f"{reading.model} {reading.checksum[:12]}, {known}; threshold of maps {look.threshold:.2f}"
    pen.text((_MARGIN, y), told, "#d1d5db", font)
    pen.text((_MARGIN, y + _LINE), NOTICE, "#fdba74", font)
    return sheet


def _bar(pen: ImageDraw.ImageDraw, corner: tuple[int, int], finding: Finding, shade: str) -> None:
    """The probability as a bar, its interval as a whisker."""
    x, y = corner
    pen.rectangle((x, y, x + _BAR, y + 13), outline="#6b7280")
    pen.rectangle((x, y, x + _BAR * finding.probability, y + 13), fill=shade)
    if finding.interval is not None:
        low, high = (x + _BAR * end for end in finding.interval)
        for stroke, width in (("#111827", 3), ("#f9fafb", 1)):
            pen.line((low, y + 6, high, y + 6), stroke, width)
            for end in (low, high):
                pen.line((end, y + 2, end, y + 11), stroke, width)


def _told(finding: Finding) -> str:
    known = percent_text(finding.probability)
    return known if finding.interval is None else f"{known} ({interval_text(finding.interval)})"


def _is_dicom(data: bytes) -> bool:
    return data[128:132] == b"DICM" or data[:4] == b"PK\x03\x04"


def _file(name: str, media: str, data: bytes) -> dict[str, Any]:
    return {"name": f"rayzero-{name}", "type": media, "data": base64.b64encode(data).decode()}
