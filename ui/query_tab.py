"""The Query tab: the image with its maps, the bars, what lives at a point, and what a reader saves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from ui import exports, fragments, results, viewer
from ui.client import ServerError
from ui.controls import Controls, read_look
from ui.fields import PLANES
from ui.handlers import Handlers
from ui.overlay import Look
from ui.session import Session
from ui.wiring import PICK, Updates, or_error, script


class QueryTab:
    """The answer to the question, and everything that draws it anew without asking again."""

    def __init__(self, handlers: Handlers, session: gr.State) -> None:
        self._handlers = handlers
        self._session = session
        hint = fragments.hint("Choose an example or drop a file.")
        self.view = gr.HTML(hint, js_on_load=script("viewer.js"), apply_default_css=False, elem_id="view")
        with gr.Row(visible=False) as self._leafing:
            self._sliders = {
                plane: gr.Slider(0, 1, 0, step=1, label=plane.capitalize(), elem_id=plane, min_width=150, buttons=[])
                for plane in PLANES
            }
            self._to_peak = gr.Button("Jump to the peak", elem_id="to-peak", size="sm", min_width=120)
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self.bars = gr.HTML(js_on_load=PICK, apply_default_css=False, elem_id="bars")
                self.point = gr.HTML(js_on_load=PICK, apply_default_css=False, elem_id="point")
            with gr.Column(scale=6, min_width=300, visible=False) as self._beside:
                self.controls = Controls()
                self._build_saving()
        self.look = self.controls.look
        self.changed = [
            *(self.view, self.bars, self.point, self._beside, self._leafing, self.controls.heat),
            *(self.controls.labelled, self.controls.threshold, self.controls.window, self.controls.grey),
            *(self.controls.level, self.controls.width),
            *self._sliders.values(),
        ]
        """What an answer changes."""
        self._wire_view()
        self._wire_saving()

    def _build_saving(self) -> None:
        gr.HTML(fragments.section("Save"))
        with gr.Row(elem_classes="rz-save"):
            self._saves = {
                form: gr.Button(name, size="sm", min_width=70, elem_id=f"save-{form}")
                for name, form in exports.FORMATS.items()
            }
        self._saved = gr.JSON(elem_id="saved", elem_classes="rz-none", show_label=False)
        self._save_error = gr.HTML(visible=False, elem_id="save-error")

    def answered(self, session: Session, *look: Any, new: bool) -> Updates:
        """The session's reading on the screen; of a ``new`` image, no choice of the last one is kept.

        Raises ServerError when a slice of a volume cannot be had.
        """
        reading, controls = session.reading, self.controls
        assert reading is not None
        ranked = [finding.label for finding in reading.ranked]
        seen = read_look(*look)
        if new:
            seen = replace(seen, heat=None, labelled=(), level=None, width=None)
        heat = seen.heat if seen.heat in ranked else ranked[0]
        labelled = [name for name in seen.labelled if name in ranked] or ranked[:3]
        seen = replace(seen, heat=heat, labelled=tuple(labelled), threshold=round(reading.threshold, 2))
        return {
            self.view: self._handlers.view(session, seen),
            self.bars: results.bars(reading),
            self.point: self._at_point(session, seen),
            self._beside: gr.Column(visible=True),
            self._leafing: gr.Row(visible=reading.volume),
            controls.heat: gr.Dropdown(ranked, value=heat),
            controls.labelled: gr.CheckboxGroup(ranked, value=labelled),
            controls.threshold: seen.threshold,
            controls.window: gr.Radio(visible=reading.volume),
            controls.grey: gr.Row(visible=not reading.volume),
            **(controls.grey_of(reading.window) if new else {}),
            **self._cursor(session),
        }

    def emptied(self) -> Updates:
        """No answer to show."""
        hidden: Updates = {self._beside: gr.Column(visible=False), self._leafing: gr.Row(visible=False)}
        return {self.view: fragments.hint("No image to show."), self.bars: "", self.point: "", **hidden}

    def reading(self) -> Updates:
        """An answer is on its way: what is left of an earlier image must not stand beside a new one."""
        return {self.view: fragments.hint("Reading the image."), self.bars: "", self.point: ""}

    def _wire_view(self) -> None:
        session, controls = self._session, self.controls
        drawn = [session, *self.look]
        pointed = [session, self.view, self.point, controls.mode, *controls.of_modes, *self._sliders.values()]
        gr.on(controls.redraws, self._draw, drawn, self.view, show_progress="hidden", trigger_mode="always_last")
        windows = [self.view, controls.level, controls.width]
        controls.own.click(self._own_window, drawn, windows, show_progress="hidden")
        controls.mode.input(self._change_mode, drawn, [self.view, *controls.of_modes], show_progress="hidden")
        for listener in (self.bars.click, self.point.click):
            listener(self._show_heat, drawn, pointed, show_progress="hidden")
        self._to_peak.click(self._show_peak, drawn, pointed, show_progress="hidden")
        self.view.click(self._point_at, drawn, pointed, show_progress="hidden", trigger_mode="always_last")
        self.view.input(self._leaf, drawn, pointed, show_progress="hidden", trigger_mode="always_last")
        gr.on(
            [slider.input for slider in self._sliders.values()],
            self._slide,
            [*self._sliders.values(), *drawn],
            [session, self.view, self.point],
            show_progress="hidden",
            trigger_mode="always_last",
        )

    def _draw(self, session: Session, *look: Any) -> Any:
        return or_error(lambda: self._handlers.view(session, read_look(*look)))

    def _change_mode(self, session: Session, *look: Any) -> Updates:
        return {self.view: self._draw(session, *look), **self.controls.for_mode(read_look(*look).mode)}

    def _own_window(self, session: Session, *look: Any) -> Updates:
        if session.reading is None:
            return {self.view: gr.skip()}
        seen = replace(read_look(*look), level=None, width=None)
        shown = or_error(lambda: self._handlers.view(session, seen))
        return {self.view: shown, **self.controls.grey_of(session.reading.window)}

    def _show_heat(self, event: gr.EventData, session: Session, *look: Any) -> Updates:
        label = str(event.pick)
        if session.reading is None or session.reading.find(label) is None:
            return {self._session: session}
        session = self._handlers.to_peak(session, label)
        seen = replace(read_look(*look), mode="map", heat=label)
        return {
            **self._moved(session, seen),
            **self.controls.for_mode("map"),
            self.controls.heat: gr.Dropdown(value=label, visible=True),
            self.controls.mode: "map",
        }

    def _show_peak(self, session: Session, *look: Any) -> Updates:
        seen = read_look(*look)
        return self._moved(self._handlers.to_peak(session, seen.heat), seen)

    def _point_at(self, event: gr.EventData, session: Session, *look: Any) -> Updates:
        session = self._handlers.point_at(session, str(event.frame), float(event.x), float(event.y))
        return self._moved(session, read_look(*look))

    def _leaf(self, event: gr.EventData, session: Session, *look: Any) -> Updates:
        reading, point = session.reading, session.point
        frame = str(event.frame)
        if reading is None or point is None or frame not in PLANES:
            return {self._session: session}
        axis = PLANES.index(frame)
        moved = list(point)
        moved[axis] = min(max(moved[axis] + int(event.step), 0), reading.shape[axis] - 1)
        session = replace(session, point=(moved[0], moved[1], moved[2]))
        return self._moved(session, read_look(*look))

    def _slide(self, axial: int, coronal: int, sagittal: int, session: Session, *look: Any) -> tuple[Session, Any, str]:
        seen = read_look(*look)
        session = replace(session, point=(int(axial) - 1, int(coronal) - 1, int(sagittal) - 1))
        return session, self._draw(session, *look), self._at_point(session, seen)

    def _moved(self, session: Session, look: Look) -> Updates:
        return {
            self._session: session,
            self.view: or_error(lambda: self._handlers.view(session, look)),
            self.point: self._at_point(session, look),
            **self._cursor(session),
        }

    def _cursor(self, session: Session) -> Updates:
        reading, point = session.reading, session.point
        if reading is None or point is None or not reading.volume:
            return {}
        return {
            slider: gr.Slider(minimum=1, maximum=count, value=place + 1)
            for slider, count, place in zip(self._sliders.values(), reading.shape, point, strict=True)
        }

    def _at_point(self, session: Session, look: Look) -> str:
        if session.reading is None or session.point is None:
            return '<p class="rz-foot">Click the image to see which of these findings live there.</p>'
        return viewer.at_point(session.reading, session.point, look.threshold)

    def _wire_saving(self) -> None:
        for form, button in self._saves.items():
            made = button.click(
                lambda session, *look, form=form: self._export(session, form, *look),
                [self._session, *self.look],
                [self._saved, self._save_error],
                show_progress_on=button,
            )
            made.then(None, self._saved, None, js="(file) => window.rayzero.save(file)")

    def _export(self, session: Session, form: exports.Format, *look: Any) -> Updates:
        try:
            file = exports.export(self._handlers.server, session, form, read_look(*look))
        except ServerError as error:
            return {self._saved: None, self._save_error: gr.HTML(fragments.error_box(error), visible=True)}
        return {self._saved: file, self._save_error: gr.HTML("", visible=False)}
