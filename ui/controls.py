"""The controls beside the image: how maps and the image below them are drawn."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.overlay import COLOUR_MAPS, Look
from ui.session import Window
from ui.wiring import Updates

_WINDOWS = [("Lung", "lung"), ("Mediastinum", "mediastinum"), ("Bone", "bone")]
_MODES = [("One map", "map"), ("Labels", "labels"), ("All maps", "all")]
_MARKS = ["Contour", "Box", "Peak"]


class Controls:
    """Components whose values, in the order of ``look``, make a ``Look``."""

    def __init__(self) -> None:
        self.mode = gr.Radio(_MODES, value="map", label="Show", elem_id="mode")
        with gr.Row():
            self.heat = gr.Dropdown([], label="Map of", elem_id="heat", min_width=150)
            self.colours = gr.Dropdown(list(COLOUR_MAPS), value="turbo", label="Colours", min_width=110)
        self.labelled = gr.CheckboxGroup([], label="Labels of", elem_id="labelled", visible=False)
        with gr.Row():
            self.opacity = gr.Slider(0, 100, 55, step=1, label="Opacity, %", elem_id="opacity", min_width=180)
            self.threshold = gr.Slider(
                0, 1, 0.5, step=0.01, label="Threshold", elem_id="threshold", min_width=180, buttons=[]
            )
        with gr.Row():
            scales = [("0 to 1", "fixed"), ("its own range", "stretch")]
            self.scale = gr.Radio(scales, value="stretch", label="Colour scale", min_width=180, elem_id="scale")
            self.marks = gr.CheckboxGroup(_MARKS, value=_MARKS, label="Marks", min_width=180, elem_id="marks")
        self.window = gr.Radio(_WINDOWS, value="lung", label="CT window", visible=False, elem_id="window")
        with gr.Row(visible=False) as self.grey:
            self.level = gr.Slider(
                0, 255, 128, step=1, label="Window level", elem_id="level", min_width=180, buttons=[]
            )
            self.width = gr.Slider(
                1, 256, 256, step=1, label="Window width", elem_id="width", min_width=180, buttons=[]
            )
            self.own = gr.Button("The film's own window", size="sm", min_width=180, elem_id="own-window")
        self.look = [
            *(self.mode, self.heat, self.labelled, self.threshold, self.colours, self.scale, self.marks),
            *(self.window, self.opacity, self.level, self.width),
        ]
        # What serves a single map, or several labels.
        self.of_modes = [self.heat, self.colours, self.scale, self.labelled]
        # What redraws the image when a reader changes it.
        self.redraws = [
            *(self.heat.input, self.labelled.input, self.threshold.input, self.colours.input, self.scale.input),
            *(self.marks.input, self.window.input, self.level.input, self.width.input),
            *(self.level.release, self.width.release),
        ]
        # This one never leaves the browser.
        self.opacity.change(None, self.opacity, None, js="(percent) => window.rayzero.opacity(percent)")

    def for_mode(self, mode: str) -> Updates:
        """Show what serves ``mode`` and hide the rest."""
        labels = mode == "labels"
        return {
            self.heat: gr.Dropdown(visible=not labels),
            self.colours: gr.Dropdown(visible=not labels),
            self.scale: gr.Radio(visible=not labels),
            self.labelled: gr.CheckboxGroup(visible=labels),
        }

    def grey_of(self, window: Window | None) -> Updates:
        """The sliders over the stored values of a film, at its own window."""
        if window is None:
            return {}
        level, width = window.shown
        # A window may reach beyond the values that occur, and most files' own does.
        low, high = min(window.lowest, level - width // 2), max(window.highest, level + width // 2)
        return {
            self.level: gr.Slider(minimum=low, maximum=high, value=level),
            self.width: gr.Slider(minimum=1, maximum=max(high - low, width), value=width),
        }


def read_look(
    mode: Any,
    heat: str | None,
    labelled: list[str],
    threshold: float,
    colours: str,
    scale: str,
    marks: list[str],
    window: str,
    opacity: float,
    level: float,
    width: float,
) -> Look:
    """The values of ``Controls.look`` as the way maps are drawn."""
    return Look(
        mode=mode,
        heat=heat,
        labelled=tuple(labelled),
        threshold=threshold,
        colours=colours,
        stretch=scale == "stretch",
        contour="Contour" in marks,
        box="Box" in marks,
        peak="Peak" in marks,
        window=window,
        opacity=opacity / 100,
        level=level,
        width=width,
    )
