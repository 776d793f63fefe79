"""The image with maps over it as HTML: a film, or the three planes of a volume, and what lives at a point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from ui.fields import PLANES, Float, Plane, on_plane, plane_count, plane_index, plane_size
from ui.fragments import chip, colour, figure, hint, meter, percent, section
from ui.overlay import Grey, Look, colour_bar, data_uri, heat_layer, label_layer, locate, outlines, shrink
from ui.session import Cursor, Finding, Reading, Study

GetSlice = Callable[[str, str, str], Grey]
GetWindowed = Callable[[str, float, float], Grey]

_VIEW_SIDE = 768
_TILE_SIDE = 360
_NOTHING = "The image and its maps appear here. Choose an example or drop a file."


@dataclass(frozen=True)
class _Canvas:
    """One picture to draw on: ``width`` by ``height`` pixels of a film, or mm of a plane; shares of it for ``cross``.

    ``name`` says which it is to a script and to a listener.
    """

    name: str
    base: Grey
    width: float
    height: float
    cross: tuple[float, float] | None = None


def film(study: Study, reading: Reading | None, look: Look, point: Cursor | None, get_windowed: GetWindowed) -> str:
    """A radiograph, beside it the same with maps over it. Raises ServerError."""
    if study.preview is None:
        return hint(_NOTHING)
    base = shrink(study.preview if reading is None else base_film(study, reading, look, get_windowed), _VIEW_SIDE)
    height, width = study.preview.shape if reading is None else reading.shape
    cross = None if point is None else ((point[2] + 0.5) / width, (point[1] + 0.5) / height)
    canvas = _Canvas("film", base, width, height, cross)
    plain = _frame(canvas, "", "", f"Radiograph: {study.title}")
    named = f"<figcaption><b>Original</b> {escape(study.title)}</figcaption>"
    left = f'<figure class="rz-figure rz-plain">{plain}{named}</figure>'
    if reading is None:
        return f'<div class="rz-pair">{left}</div>'
    if look.mode == "all":
        tiles = "".join(_tile(canvas, reading, finding, look) for finding in reading.ranked)
        return f'<div class="rz-tiles">{tiles}</div>'
    fields = {finding.label: finding.flat for finding in reading.findings if finding.flat is not None}
    over, marks, alt = _maps(canvas, reading, fields, look)
    right = f'<figure class="rz-figure">{_frame(canvas, over, marks, alt)}{_caption(reading, look)}</figure>'
    return f'<div class="rz-pair">{left}{right}</div>'


def planes(study: Study, reading: Reading, look: Look, cursor: Cursor, get_slice: GetSlice) -> str:
    """The three planes of a volume through ``cursor`` with maps over them. Raises ServerError."""
    if look.mode == "all":
        tiles = "".join(_volume_tile(reading, finding, look, get_slice) for finding in reading.ranked)
        return f'<div class="rz-tiles">{tiles}</div>'
    figures = []
    for plane in PLANES:
        canvas = _plane(reading, plane, cursor, look, get_slice)
        index = plane_index(plane, cursor)
        shown = _shown(reading, look)
        fields = {finding.label: finding.grid.plane(plane, index) for finding in shown}
        over, marks, alt = _maps(canvas, reading, fields, look)
        count = plane_count(plane, reading.shape)
        place = f'<span class="rz-logit">{index + 1} of {count}</span>'
        caption = f"<figcaption><b>{plane.capitalize()}</b> {place}</figcaption>"
        frame = _frame(canvas, over, marks, f"{plane} slice. {alt}")
        figures.append(f'<figure class="rz-figure">{frame}{caption}</figure>')
    profile = _profile(reading, look, cursor)
    return f'<div class="rz-planes">{"".join(figures)}</div>{_caption(reading, look)}{profile}'


def at_point(reading: Reading, point: Cursor, threshold: float) -> str:
    """Which of the findings live at a point: from words to a place and back."""
    place = tuple(place + 0.5 for place in (point if reading.volume else point[1:]))
    values = sorted(((finding.grid.at(place), finding) for finding in reading.findings), key=lambda pair: -pair[0])
    here = sum(value >= threshold for value, _ in values)
    rows = "".join(
        f'<li class="{"rz-here" if value >= threshold else "rz-not"}"><button type="button" class="rz-label" '
        f'data-pick="{escape(finding.label)}">{chip(colour(reading, finding))}{escape(finding.label)}</button>'
        f"{meter(value, f'map of {finding.label} here', colour(reading, finding), threshold)}</li>"
        for value, finding in values
    )
    where = f"x {point[2]}, y {point[1]}" + (f", slice {point[0] + 1}" if reading.volume else "")
    told = "no finding is above the threshold" if not here else f"{here} of {len(values)} above the threshold"
    return (
        f'<section aria-live="polite">{section("At this point")}<p class="rz-foot">{where}: {told}. '
        f"Bars show the map here, the line its threshold; not a probability.</p>"
        f'<ol class="rz-bars">{rows}</ol></section>'
    )


def small(reading: Reading, study: Study, label: str, look: Look, get_slice: GetSlice) -> str:
    """One finding's map as a small picture, of a volume on the slice of its peak. Raises ServerError."""
    finding = reading.find(label)
    if finding is None:
        return hint("Not asked of this one.")
    if reading.volume:
        return _volume_tile(reading, finding, look, get_slice)
    if study.preview is None:
        return hint(_NOTHING)
    height, width = reading.shape
    return _tile(_Canvas("tile", study.preview, width, height), reading, finding, look)


def base_film(study: Study, reading: Reading, look: Look, get_windowed: GetWindowed) -> Grey:
    """A film in the look's window as the server draws it. Raises ServerError."""
    own = reading.window
    assert study.preview is not None, "a reading comes with its preview"
    if own is None or look.level is None or look.width is None or (look.level, look.width) == own.shown:
        return study.preview
    return get_windowed(reading.preview, look.level, look.width)


def base_slice(reading: Reading, plane: Plane, index: int, window: str, get_slice: GetSlice) -> Grey:
    """A plane of a volume as the server draws it. Raises ServerError."""
    assert reading.slice_preview is not None, "a volume has slices"
    return get_slice(reading.slice_preview.replace("{z}", str(index)), plane, window)


def _plane(reading: Reading, plane: Plane, cursor: Cursor, look: Look, get_slice: GetSlice) -> _Canvas:
    base = base_slice(reading, plane, plane_index(plane, cursor), look.window, get_slice)
    width, height = plane_size(plane, reading.shape, reading.spacing_mm)
    return _Canvas(plane, base, width, height, on_plane(plane, reading.shape, cursor))


def _shown(reading: Reading, look: Look) -> list[Finding]:
    """The findings that the look shows, in the order asked."""
    names = look.labelled if look.mode == "labels" else (look.heat,)
    return [finding for finding in reading.findings if finding.label in names]


def _maps(
    canvas: _Canvas,
    reading: Reading,
    fields: dict[str, Float],
    look: Look,
) -> tuple[str, str, str]:
    """The layer, the marks and the words for the maps of a look on one canvas."""
    shown = [finding for finding in _shown(reading, look) if finding.label in fields]
    if not shown:
        return "", "", "No map chosen"
    if look.mode == "labels":
        layer = label_layer([fields[f.label] for f in shown], [colour(reading, f) for f in shown], look.threshold)
        marks = "".join(_outline(canvas, reading, finding, fields[finding.label], look) for finding in shown)
    else:
        layer = heat_layer(fields[shown[0].label], look, shown[0].span)
        marks = _marks(canvas, fields[shown[0].label], look)
    return data_uri(layer.pixels), marks, f"Maps over the image: {', '.join(finding.label for finding in shown)}"


def _frame(canvas: _Canvas, over: str, marks: str, alt: str) -> str:
    """Layers of one picture: the image, the map, marks and the cross. It takes focus, clicks and arrow keys."""
    layer = f'<img class="rz-over" src="{over}" alt="">' if over else ""
    return (
        f'<div class="rz-frame rz-live" data-frame="{canvas.name}" tabindex="0" role="application" '
        f'aria-label="{escape(alt)}. Click, or move with the arrow keys, to see which findings live at a point." '
        f'style="aspect-ratio:{canvas.width:.3f}/{canvas.height:.3f};--ratio:{canvas.width / canvas.height:.4f}" '
        f"{_cross_data(canvas)}>"
        f'<img class="rz-base" src="{data_uri(canvas.base)}" alt="">{layer}{_svg(canvas, marks + _cross(canvas))}</div>'
    )


def _tile(canvas: _Canvas, reading: Reading, finding: Finding, look: Look) -> str:
    return _small_figure(canvas, reading, finding, _flat(finding), look)


def _volume_tile(reading: Reading, finding: Finding, look: Look, get_slice: GetSlice) -> str:
    canvas = _plane(reading, "axial", finding.peak, look, get_slice)
    field = finding.grid.plane("axial", finding.peak[0])
    bare = _Canvas("tile", canvas.base, canvas.width, canvas.height)
    return _small_figure(bare, reading, finding, field, look, f"slice {finding.peak[0] + 1}")


def _small_figure(canvas: _Canvas, reading: Reading, finding: Finding, field: Float, look: Look, note: str = "") -> str:
    layer = heat_layer(field, look, finding.span)
    caption = (
        f"{chip(colour(reading, finding))}<b>{escape(finding.label)}</b>"
        f'{percent(finding.probability)}<span class="rz-logit">{note}</span>{_nowhere(finding, look)}'
    )
    above = f'<img class="rz-over" src="{data_uri(layer.pixels)}" alt="">{_svg(canvas, _marks(canvas, field, look))}'
    base = data_uri(shrink(canvas.base, _TILE_SIDE))
    picture = figure(base, f"Map of {finding.label}", caption, above)
    return picture.replace(
        'class="rz-frame"', f'class="rz-frame" style="aspect-ratio:{canvas.width:.3f}/{canvas.height:.3f}"', 1
    )


def _caption(reading: Reading, look: Look) -> str:
    """What the colours mean: the scale of a map, or the legend of the labels."""
    shown = _shown(reading, look)
    if not shown:
        words = "tick findings to label" if look.mode == "labels" else "choose a finding for its map"
        return f'<figcaption class="rz-caption"><b>Overlay</b> {words}</figcaption>'
    if look.mode == "labels":
        cells = "".join(f"<li>{chip(colour(reading, f))}{escape(f.label)} {percent(f.probability)}</li>" for f in shown)
        return f'<figcaption class="rz-caption"><ul class="rz-legend" aria-label="Legend">{cells}</ul></figcaption>'
    finding = shown[0]
    low, high = finding.span if look.stretch else (0.0, 1.0)
    return (
        f'<figcaption class="rz-caption"><b>{escape(finding.label)}</b> {percent(finding.probability)}'
        f'{_nowhere(finding, look)}<span class="rz-scale"><span>{low:.2f}</span>'
        f'<i style="background:{colour_bar(look.colours)}"></i>'
        f"<span>{high:.2f}</span></span></figcaption>"
    )


def _nowhere(finding: Finding, look: Look) -> str:
    """Says so where a map stays below the threshold: an empty picture could mean anything."""
    return "" if finding.span[1] >= look.threshold else '<span class="rz-logit">nowhere above the threshold</span>'


def _flat(finding: Finding) -> Float:
    assert finding.flat is not None, "a film's map is kept as a field"
    return finding.flat


def _profile(reading: Reading, look: Look, cursor: Cursor) -> str:
    """How high the shown maps reach on every axial slice, and where the cursor is."""
    lines, count = [], reading.shape[0]
    for finding in _shown(reading, look):
        if not finding.slice_peaks:
            continue
        points = " ".join(f"{z + 0.5:.1f},{1 - value:.3f}" for z, value in enumerate(finding.slice_peaks))
        lines.append(f'<polyline points="{points}" stroke="{colour(reading, finding)}"/>')
    if not lines:
        return ""
    at, level = cursor[0] + 0.5, 1 - look.threshold
    return (
        '<figure class="rz-profile"><figcaption>Highest map value of every axial slice, feet to head</figcaption>'
        f'<svg viewBox="0 -0.05 {count} 1.1" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="rz-level" d="M0 {level:.3f}H{count}"/><path class="rz-at" d="M{at} -0.05V1.05"/>'
        f"{''.join(lines)}</svg></figure>"
    )


def _svg(canvas: _Canvas, marks: str) -> str:
    return (
        f'<svg viewBox="0 0 {canvas.width:.2f} {canvas.height:.2f}" preserveAspectRatio="none" aria-hidden="true">'
        f"{marks}</svg>"
    )


def _marks(canvas: _Canvas, field: Float, look: Look) -> str:
    """Contour, box and peak of one map."""
    out = ""
    if look.contour:
        out += _polygons(outlines(field, look.threshold, canvas.width, canvas.height), "#fff", "rz-contour")
    region = locate(field, look.threshold, canvas.width, canvas.height)
    if look.box and region.box is not None:
        x0, y0, x1, y1 = region.box
        size = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
        out += f'<rect {size} class="rz-halo"/><rect {size} stroke="#fff"/>'
    # Below the threshold, and on the planes beside a finding, the highest value is no peak.
    if look.peak and region.value >= look.threshold:
        x, y = region.peak
        out += _plus(x, y, max(canvas.width, canvas.height) / 60)
    return out


def _outline(canvas: _Canvas, reading: Reading, finding: Finding, field: Float, look: Look) -> str:
    shade = colour(reading, finding)
    lines = outlines(field, look.threshold, canvas.width, canvas.height)
    if not lines:
        return ""
    shapes = _polygons(lines, shade, "") if look.contour else ""
    x, y = locate(field, look.threshold, canvas.width, canvas.height).peak
    size = max(canvas.width, canvas.height) / 30
    # Kept inside the frame: a label at the right edge ends at its peak instead of starting there.
    anchor = "end" if x > 0.6 * canvas.width else "start"
    return (
        f'{shapes}<text x="{x:.1f}" y="{max(y, size):.1f}" font-size="{size:.1f}" text-anchor="{anchor}" '
        f'fill="{shade}">{escape(finding.label)}</text>'
    )


def _polygons(lines: Sequence[object], shade: str, kind: str) -> str:
    shapes = (" ".join(f"{x:.1f},{y:.1f}" for x, y in line) for line in lines)  # type: ignore[attr-defined]
    return "".join(f'<polygon points="{points}" stroke="{shade}" class="{kind}"/>' for points in shapes)


def _plus(x: float, y: float, arm: float) -> str:
    path = f"M{x - arm:.1f} {y:.1f}H{x + arm:.1f}M{x:.1f} {y - arm:.1f}V{y + arm:.1f}"
    return f'<path d="{path}" class="rz-halo"/><path d="{path}" stroke="#fff"/>'


def _cross(canvas: _Canvas) -> str:
    if canvas.cross is None:
        return ""
    x, y = canvas.cross[0] * canvas.width, canvas.cross[1] * canvas.height
    return f'<path class="rz-cross" d="M0 {y:.1f}H{canvas.width:.1f}M{x:.1f} 0V{canvas.height:.1f}"/>'


def _cross_data(canvas: _Canvas) -> str:
    x, y = canvas.cross or (0.5, 0.5)
    return f'data-x="{x:.4f}" data-y="{y:.4f}"'
