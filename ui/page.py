"""The page: its components and what they are wired to. Sessions live in ``gr.State`` alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ui import cards, exports, fragments, results, viewer
from ui.client import ServerError
from ui.fields import PLANES
from ui.handlers import Handlers, example_study, take_file
from ui.overlay import COLOUR_MAPS, Look
from ui.session import COMPANIONS, Comparison, Session, Study, kind_of

_HERE = Path(__file__).parent
_RETRY_S = 4
_SESSION_S = 3600

# Buttons inside our own HTML say which of them was pressed; one listener outlives every redraw of the content.
_PICK = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (button) trigger('click', {pick: button.dataset.pick});
});"""
_UPLOAD = "Your own image: DICOM, PNG, JPEG, NIfTI, or a zip of one CT series"
_WINDOWS = [("Lung", "lung"), ("Mediastinum", "mediastinum"), ("Bone", "bone")]
_MODES = [("One map", "map"), ("Labels", "labels"), ("All maps", "all")]
_MARKS = ["Contour", "Box", "Peak"]

Updates = dict[Any, Any]


class Page:
    """Components and their wiring. One instance makes one ``gr.Blocks``."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers
        with gr.Blocks(
            title="RayZero reading room", analytics_enabled=False, delete_cache=(600, _SESSION_S), fill_width=True
        ) as blocks:
            self.blocks: gr.Blocks = blocks
            self.session = gr.State(Session(), time_to_live=_SESSION_S)
            self.timer = gr.Timer(_RETRY_S, active=False)
            gr.HTML(fragments.header())
            with gr.Row(elem_classes="rz-away"):
                self.away = gr.HTML(visible=False)
                self.retry = gr.Button("Retry now", visible=False, scale=0, size="sm", elem_id="retry")
            with gr.Row(elem_classes="rz-main"):
                with gr.Column(scale=3, min_width=300):
                    self._build_question()
                with gr.Column(scale=8, min_width=320), gr.Tabs():
                    with gr.Tab("Query"):
                        self._build_query()
                    with gr.Tab("Compare"):
                        self._build_compare()
                    with gr.Tab("Retrieve"):
                        self._build_retrieve()
                    with gr.Tab("Explain"):
                        self.about = gr.HTML(fragments.hint("The model's card appears here."), elem_id="about")
            self._wire()

    def _build_question(self) -> None:
        self.gallery = gr.HTML(
            fragments.hint("Example studies appear here."),
            js_on_load=_PICK,
            apply_default_css=False,
            elem_id="examples",
        )
        gr.HTML(fragments.section(_UPLOAD))
        self.upload = gr.File(label="Your own image", show_label=False, height=128, elem_id="upload", interactive=True)
        self.findings = gr.Textbox(
            label="Findings, one a line", lines=6, max_lines=14, max_length=8000, elem_id="findings"
        )
        self.words = gr.HTML("[]", js_on_load=(_HERE / "findings.js").read_text(), visible="hidden", elem_id="words")
        self.model = gr.Dropdown([], label="Model", visible=False, elem_id="model")
        with gr.Accordion("Further films of this study", open=False, visible=False) as self.further:
            self.companions = {
                name: gr.File(label=name.replace("_", " ").capitalize(), height=96, elem_id=name, visible=False)
                for name in COMPANIONS
            }
            self.attached = gr.HTML("", elem_id="attached")
            self.detach = gr.Button("Take them away", size="sm", visible=False, elem_id="detach")
        self.ask = gr.Button("Ask", variant="primary", elem_id="ask")
        self.error = gr.HTML(visible=False, elem_id="error")

    def _build_query(self) -> None:
        hint = fragments.hint("Choose an example or drop a file.")
        self.view = gr.HTML(hint, js_on_load=(_HERE / "viewer.js").read_text(), apply_default_css=False, elem_id="view")
        with gr.Row(visible=False) as self.leafing:
            self.sliders = {
                plane: gr.Slider(0, 1, 0, step=1, label=plane.capitalize(), elem_id=plane, min_width=150, buttons=[])
                for plane in PLANES
            }
            self.to_peak = gr.Button("Jump to the peak", elem_id="to-peak", size="sm", min_width=120)
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self.bars = gr.HTML(js_on_load=_PICK, apply_default_css=False, elem_id="bars")
                self.point = gr.HTML(js_on_load=_PICK, apply_default_css=False, elem_id="point")
            with gr.Column(scale=6, min_width=300, visible=False) as self.controls:
                self._build_controls()

    def _build_controls(self) -> None:
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
            self.level = gr.Slider(0, 255, 128, step=1, label="Window level", elem_id="level", min_width=180)
            self.width = gr.Slider(1, 512, 256, step=1, label="Window width", elem_id="width", min_width=180)
        gr.HTML(fragments.section("Save"))
        with gr.Row(elem_classes="rz-save"):
            self.saves = {
                form: gr.Button(name, size="sm", min_width=70, elem_id=f"save-{form}")
                for name, form in exports.FORMATS.items()
            }
        self.saved = gr.JSON(elem_id="saved", elem_classes="rz-none", show_label=False)
        self.save_error = gr.HTML(visible=False, elem_id="save-error")
        self.look = [
            *(self.mode, self.heat, self.labelled, self.threshold, self.colours, self.scale, self.marks),
            *(self.window, self.opacity, self.level, self.width),
        ]

    def _build_compare(self) -> None:
        with gr.Row():
            with gr.Column(min_width=300):
                gr.HTML("<h3>Two models on this image</h3>")
                with gr.Row():
                    self.left = gr.Dropdown([], label="First", elem_id="left", min_width=120)
                    self.right = gr.Dropdown([], label="Second", elem_id="right", min_width=120)
                self.compare = gr.Button("Compare the models", elem_id="compare")
            with gr.Column(min_width=300):
                gr.HTML("<h3>This image against a prior one</h3>")
                self.prior = gr.Dropdown([], label="A prior of the examples", elem_id="prior")
                self.prior_file = gr.File(label="Or your own prior", height=128, elem_id="prior-file")
        self.compare_error = gr.HTML(visible=False, elem_id="compare-error")
        self.compared = gr.HTML(
            fragments.hint("The two readings appear here, side by side."),
            js_on_load=_PICK,
            apply_default_css=False,
            elem_id="compared",
        )

    def _build_retrieve(self) -> None:
        self.index = gr.Dropdown([], label="Search in", visible=False, elem_id="index")
        with gr.Row():
            with gr.Column(min_width=300):
                gr.HTML("<h3>Reports that fit this image</h3>")
                self.find_sentences = gr.Button("Search reports", elem_id="find-sentences")
                self.sentences = gr.HTML(fragments.hint("Ranked sentences appear here."), elem_id="sentences")
            with gr.Column(min_width=300):
                gr.HTML("<h3>Images that fit a sentence</h3>")
                with gr.Row():
                    self.text = gr.Textbox(
                        placeholder="pleural effusion",
                        label="Finding or sentence",
                        show_label=False,
                        container=False,
                        elem_id="text",
                        scale=3,
                    )
                    self.find_images = gr.Button("Search images", scale=1, min_width=160, elem_id="find-images")
                self.hits = gr.HTML(fragments.hint("Ranked images appear here."), elem_id="hits")

    def _wire(self) -> None:
        self._wire_connection()
        self._wire_question()
        self._wire_view()
        self._wire_compare()
        self._wire_exports()
        searched = [self.session, self.model, self.index]
        self.find_sentences.click(self._sentences, searched, self.sentences)
        gr.on([self.find_images.click, self.text.submit], self._images, [*searched, self.text], self.hits)

    def _wire_connection(self) -> None:
        shown = [
            *(self.session, self.away, self.retry, self.timer, self.gallery, self.words, self.about, self.findings),
            *(self.model, self.index, self.left, self.right, self.prior, self.further, *self.companions.values()),
        ]
        triggers = [self.blocks.load, self.retry.click, self.timer.tick]
        connected = gr.on(triggers, self._connect, [self.session, self.model], shown, show_progress="hidden")
        # What could not be answered while the server was away is asked again.
        asked = [self.session, self.findings, self.model, *self.look]
        connected.then(self._resume, asked, self._answer, show_progress="hidden")
        self.blocks.load(None, js=(_HERE / "page.js").read_text())

    @property
    def _answer(self) -> list[Any]:
        """Everything that an answer changes."""
        return [
            *(self.session, self.view, self.bars, self.point, self.error, self.away, self.retry, self.timer),
            *(self.controls, self.leafing, self.heat, self.labelled, self.threshold, self.window, self.grey),
            *self.sliders.values(),
        ]

    def _wire_question(self) -> None:
        left = [self.view, self.bars, self.point, self.error]
        chosen = [self.session, self.findings, self.gallery, self.upload, *left, *self._study_choices]
        asked = [self.session, self.findings, self.model, *self.look]
        taken = self.upload.upload(self._take, [self.session, self.upload, self.model], chosen, show_progress="hidden")
        picked = self.gallery.click(
            self._pick, [self.session, self.findings, self.model], chosen, show_progress="hidden"
        )
        for then in (*(self.ask.click, self.findings.submit, self.model.input, picked.then, taken.then),):
            # A newer question is asked while an older one waits for its answer, which is then let go.
            answered = then(
                self._ask, asked, self._answer, show_progress_on=[self.view, self.bars], trigger_mode="multiple"
            )
            answered.then(None, js="() => window.rayzero.show()")
        changed = [self.further, *self.companions.values(), self.about, self.words]
        self.model.input(self._change_model, [self.session, self.model], changed, show_progress="hidden")
        attached = [self.session, self.error, self.attached, self.detach]
        changes = [
            file.upload(
                lambda session, path, name=name: self._companion(session, name, path),
                [self.session, file],
                [*attached, file],
                show_progress="hidden",
            )
            for name, file in self.companions.items()
        ]
        changes.append(self.detach.click(self._detach, self.session, attached, show_progress="hidden"))
        for change in changes:
            change.then(self._ask, asked, self._answer, show_progress_on=[self.view, self.bars])

    @property
    def _study_choices(self) -> list[Any]:
        """What depends on which study is chosen."""
        further = [self.further, *self.companions.values(), self.attached, self.detach]
        return [self.model, self.left, self.right, self.prior, *further]

    def _wire_view(self) -> None:
        drawn = [self.session, *self.look]
        changed = [
            *(self.heat.input, self.labelled.input, self.threshold.input, self.colours.input, self.scale.input),
            *(self.marks.input, self.window.input),
        ]
        gr.on(changed, self._draw, drawn, self.view, show_progress="hidden", trigger_mode="always_last")
        self.mode.input(self._change_mode, drawn, [self.view, *self._of_modes], show_progress="hidden")
        for listener in (self.bars.click, self.point.click):
            listener(self._show_heat, drawn, self._pointed, show_progress="hidden")
        self.to_peak.click(self._to_peak, drawn, self._pointed, show_progress="hidden")
        self.view.click(self._point_at, drawn, self._pointed, show_progress="hidden", trigger_mode="always_last")
        self.view.input(self._leaf, drawn, self._pointed, show_progress="hidden", trigger_mode="always_last")
        gr.on(
            [slider.input for slider in self.sliders.values()],
            self._slide,
            [*self.sliders.values(), *drawn],
            [self.session, self.view, self.point],
            show_progress="hidden",
            trigger_mode="always_last",
        )
        # These two never leave the browser.
        self.opacity.change(None, self.opacity, None, js="(percent) => window.rayzero.opacity(percent)")
        gr.on(
            [self.level.change, self.width.change],
            None,
            [self.level, self.width],
            None,
            js="(level, width) => window.rayzero.window(level, width)",
        )

    @property
    def _pointed(self) -> list[Any]:
        """What follows the point of attention."""
        return [self.session, self.view, self.point, self.mode, *self._of_modes, *self.sliders.values()]

    @property
    def _of_modes(self) -> list[Any]:
        """The controls that serve a single map, or several labels."""
        return [self.heat, self.colours, self.scale, self.labelled]

    def _controls_of(self, mode: str) -> Updates:
        labels = mode == "labels"
        return {
            self.heat: gr.Dropdown(visible=not labels),
            self.colours: gr.Dropdown(visible=not labels),
            self.scale: gr.Radio(visible=not labels),
            self.labelled: gr.CheckboxGroup(visible=labels),
        }

    def _wire_compare(self) -> None:
        shown = [self.session, self.compared, self.compare_error]
        view = [self.session, self.findings]
        self.compare.click(
            self._compare_models, [*view, self.left, self.right, *self.look], shown, show_progress_on=self.compared
        )
        self.prior.input(
            self._compare_example, [*view, self.model, self.prior, *self.look], shown, show_progress_on=self.compared
        )
        self.prior_file.upload(
            self._compare_file,
            [*view, self.model, self.prior_file, *self.look],
            [*shown, self.prior_file],
            show_progress_on=self.compared,
        )
        self.compared.click(self._compare_finding, [self.session, *self.look], self.compared, show_progress="hidden")

    def _wire_exports(self) -> None:
        for form, button in self.saves.items():
            made = button.click(
                lambda session, *look, form=form: self._export(session, form, *look),
                [self.session, *self.look],
                [self.saved, self.save_error],
                show_progress_on=button,
            )
            made.then(None, self.saved, None, js="(file) => window.rayzero.save(file)")

    # Listeners: each takes the values of components and returns what to change of which.

    def _connect(self, session: Session, model: str | None) -> Updates:
        first = not session.connected
        try:
            session = self.handlers.connect(session)
            gallery = self.handlers.gallery(session)
        except ServerError as error:
            return {self.session: replace(session, connected=False), **self._away(error)}
        updates: Updates = {
            self.session: session,
            self.away: gr.HTML("", visible=False),
            self.retry: gr.Button(visible=False),
            self.timer: gr.Timer(active=False),
            self.gallery: gallery,
            self.words: json.dumps(self.handlers.vocabulary(session, model)),
            self.about: cards.cards(session.models, self.handlers.fitting_model(session, model)),
            self.index: gr.Dropdown(
                [("the examples", ""), *((known["name"], known["name"]) for known in session.indexes)],
                value="",
                visible=bool(session.indexes),
            ),
            **self._choices(session, model),
        }
        if first and session.study is None:
            updates[self.findings] = session.suggested
        return updates

    def _choices(self, session: Session, model: str | None) -> Updates:
        """The models that read the study, and the priors that it can be compared with."""
        fitting = self.handlers.fitting_model(session, model)
        names = [known["name"] for known in self.handlers.choices(session)]
        study = session.study
        alike = [one for one in session.examples if study is None or one["input"] == study.kind]
        others = [(one["title"], one["id"]) for one in alike if study is None or one["image_id"] != study.image_id]
        second = next((name for name in names if name != fitting), None)
        return {
            self.model: gr.Dropdown(names, value=fitting, visible=len(session.models) > 1),
            self.left: gr.Dropdown(names, value=fitting),
            self.right: gr.Dropdown(names, value=second),
            self.prior: gr.Dropdown(others, value=None),
            **self._choose_model(session, fitting),
        }

    def _choose_model(self, session: Session, model: str | None) -> Updates:
        known = session.model(model) if model else None
        reads = known["companions"] if known else []
        updates: Updates = {name: gr.File(visible=key in reads) for key, name in self.companions.items()}
        return {self.further: gr.Accordion(visible=bool(reads)), **updates}

    def _change_model(self, session: Session, model: str | None) -> Updates:
        return {
            **self._choose_model(session, model),
            self.about: cards.cards(session.models, model),
            self.words: json.dumps(self.handlers.vocabulary(session, model)),
        }

    def _pick(self, session: Session, findings: str, model: str | None, event: gr.EventData) -> Updates:
        session, findings = self.handlers.pick(session, str(event.pick), findings)
        return {**self._chosen(session, model), self.findings: findings}

    def _take(self, session: Session, path: str | None, model: str | None) -> Updates:
        # The dropzone is emptied at once, so that the file's name does not stay on the screen.
        session = self.handlers.take_upload(session, path)
        return {**self._chosen(session, model), self.upload: None}

    def _chosen(self, session: Session, model: str | None) -> Updates:
        session.turn.take()
        # What is left of an earlier image must not stand beside a new one.
        left: Updates = {self.view: fragments.hint("Reading the image."), self.bars: "", self.point: ""}
        left[self.error] = gr.HTML("", visible=False)
        updates: Updates = {self.session: session, **left, **self._attached(session), **self._choices(session, model)}
        # The question that follows says so when the server is away.
        with suppress(ServerError):
            updates[self.gallery] = self.handlers.gallery(session)
        return updates

    def _companion(self, session: Session, name: str, path: str | None) -> Updates:
        # Emptied like the first dropzone: the name of the file may be a patient's.
        empty: Updates = {self.companions[name]: None}
        try:
            session = self.handlers.take_companion(session, name, path)
        except ServerError as error:
            return {**empty, self.error: gr.HTML(fragments.error_box(error), visible=True)}
        return {**empty, self.session: session, **self._attached(session)}

    def _detach(self, session: Session) -> Updates:
        if session.study is None:
            return {self.session: session}
        session = replace(session, study=replace(session.study, companions={}))
        return {self.session: session, **self._attached(session)}

    def _attached(self, session: Session) -> Updates:
        """Which further films go with the question."""
        names = [] if session.study is None else [name.replace("_", " ") for name in session.study.companions]
        told = f'<p class="rz-foot">With the question: {", ".join(names)}.</p>' if names else ""
        return {self.attached: told, self.detach: gr.Button(visible=bool(names))}

    def _ask(self, session: Session, findings: str, model: str | None, *look: Any) -> Updates:
        turn = session.turn.take()
        updates = self._asked(session, findings, model, *look)
        return updates if session.turn.number == turn else {self.session: gr.skip()}

    def _asked(self, session: Session, findings: str, model: str | None, *look: Any) -> Updates:
        new = session.reading is None
        try:
            session = self.handlers.ask(session, findings, model)
        except ServerError as error:
            return self._failed(session, error)
        reading = session.reading
        assert reading is not None
        ranked = [finding.label for finding in reading.ranked]
        seen = read_look(*look)
        if new:
            seen = replace(seen, heat=None, labelled=())
        heat = seen.heat if seen.heat in ranked else ranked[0]
        labelled = [name for name in seen.labelled if name in ranked] or ranked[:3]
        seen = replace(seen, heat=heat, labelled=tuple(labelled), threshold=round(reading.threshold, 2))
        try:
            view = self.handlers.view(session, seen)
        except ServerError as error:
            return self._failed(session, error)
        return {
            self.session: session,
            self.view: view,
            self.bars: results.bars(reading),
            self.point: self._point(session, seen),
            self.heat: gr.Dropdown(ranked, value=heat),
            self.labelled: gr.CheckboxGroup(ranked, value=labelled),
            self.threshold: seen.threshold,
            self.error: gr.HTML("", visible=False),
            self.away: gr.HTML("", visible=False),
            self.retry: gr.Button(visible=False),
            self.timer: gr.Timer(active=False),
            self.controls: gr.Column(visible=True),
            self.leafing: gr.Row(visible=reading.volume),
            self.window: gr.Radio(visible=reading.volume),
            self.grey: gr.Row(visible=not reading.volume),
            **self._cursor(session),
        }

    def _resume(self, session: Session, findings: str, model: str | None, *look: Any) -> Updates:
        if not session.pending or not session.connected:
            return {self.session: gr.skip()}
        return self._ask(session, findings, model, *look)

    def _failed(self, session: Session, error: ServerError) -> Updates:
        updates: Updates = {self.session: replace(session, pending=error.passing)}
        if error.passing:
            updates |= {**self._away(error), self.error: gr.HTML("", visible=False)}
        else:
            updates[self.error] = gr.HTML(fragments.error_box(error), visible=True)
        if session.reading is None:
            blank = fragments.hint("No image to show.")
            hidden = {self.controls: gr.Column(visible=False), self.leafing: gr.Row(visible=False)}
            updates |= {self.view: blank, self.bars: "", self.point: "", **hidden}
        return updates

    def _away(self, error: ServerError) -> Updates:
        box = gr.HTML(fragments.error_box(error), visible=True)
        return {self.away: box, self.retry: gr.Button(visible=True), self.timer: gr.Timer(active=True)}

    def _draw(self, session: Session, *look: Any) -> Any:
        return _or_error(lambda: self.handlers.view(session, read_look(*look)))

    def _change_mode(self, session: Session, *look: Any) -> Updates:
        return {self.view: self._draw(session, *look), **self._controls_of(read_look(*look).mode)}

    def _show_heat(self, event: gr.EventData, session: Session, *look: Any) -> Updates:
        label = str(event.pick)
        if session.reading is None or session.reading.find(label) is None:
            return {self.session: session}
        session = self.handlers.to_peak(session, label)
        seen = replace(read_look(*look), mode="map", heat=label)
        return {
            **self._moved(session, seen),
            **self._controls_of("map"),
            self.heat: gr.Dropdown(value=label, visible=True),
            self.mode: "map",
        }

    def _to_peak(self, session: Session, *look: Any) -> Updates:
        seen = read_look(*look)
        return self._moved(self.handlers.to_peak(session, seen.heat), seen)

    def _point_at(self, event: gr.EventData, session: Session, *look: Any) -> Updates:
        session = self.handlers.point_at(session, str(event.frame), float(event.x), float(event.y))
        return self._moved(session, read_look(*look))

    def _leaf(self, event: gr.EventData, session: Session, *look: Any) -> Updates:
        reading, point = session.reading, session.point
        frame = str(event.frame)
        if reading is None or point is None or frame not in PLANES:
            return {self.session: session}
        axis = PLANES.index(frame)
        moved = list(point)
        moved[axis] = min(max(moved[axis] + int(event.step), 0), reading.shape[axis] - 1)
        session = replace(session, point=(moved[0], moved[1], moved[2]))
        return self._moved(session, read_look(*look))

    def _slide(self, axial: int, coronal: int, sagittal: int, session: Session, *look: Any) -> tuple[Session, Any, str]:
        seen = read_look(*look)
        session = replace(session, point=(int(axial) - 1, int(coronal) - 1, int(sagittal) - 1))
        return session, self._draw(session, *look), self._point(session, seen)

    def _moved(self, session: Session, look: Look) -> Updates:
        return {
            self.session: session,
            self.view: _or_error(lambda: self.handlers.view(session, look)),
            self.point: self._point(session, look),
            **self._cursor(session),
        }

    def _cursor(self, session: Session) -> Updates:
        reading, point = session.reading, session.point
        if reading is None or point is None or not reading.volume:
            return {}
        return {
            slider: gr.Slider(minimum=1, maximum=count, value=place + 1)
            for slider, count, place in zip(self.sliders.values(), reading.shape, point, strict=True)
        }

    def _point(self, session: Session, look: Look) -> str:
        if session.reading is None or session.point is None:
            return '<p class="rz-foot">Click the image to see which of these findings live there.</p>'
        return viewer.at_point(session.reading, session.point, look.threshold)

    def _compare_models(
        self, session: Session, findings: str, left: str | None, right: str | None, *look: Any
    ) -> Updates:
        return self._compared(session, look, lambda: self.handlers.compare_models(session, findings, left, right))

    def _compare_example(
        self, session: Session, findings: str, model: str | None, prior: str | None, *look: Any
    ) -> Updates:
        example = next((one for one in session.examples if one["id"] == prior), None)
        if example is None:
            return {self.session: session}
        study = example_study(example)
        return self._compared(session, look, lambda: self.handlers.compare_prior(session, study, findings, model))

    def _compare_file(
        self, session: Session, findings: str, model: str | None, path: str | None, *look: Any
    ) -> Updates:
        data = take_file(path)
        if data is None:
            return {self.session: session}
        prior = Study("your prior", kind_of(data), upload=data)
        updates = self._compared(session, look, lambda: self.handlers.compare_prior(session, prior, findings, model))
        return {**updates, self.prior_file: None}

    def _compared(self, session: Session, look: tuple[Any, ...], work: Callable[[], Session]) -> Updates:
        try:
            session = work()
            shown = self.handlers.comparison(session, None, _of_comparison(session.comparison, read_look(*look)))
        except ServerError as error:
            return {self.session: session, self.compare_error: gr.HTML(fragments.error_box(error), visible=True)}
        return {self.session: session, self.compared: shown, self.compare_error: gr.HTML("", visible=False)}

    def _compare_finding(self, event: gr.EventData, session: Session, *look: Any) -> Any:
        seen = _of_comparison(session.comparison, read_look(*look))
        return _or_error(lambda: self.handlers.comparison(session, str(event.pick), seen))

    def _export(self, session: Session, form: exports.Format, *look: Any) -> Updates:
        try:
            file = exports.export(self.handlers.server, session, form, read_look(*look))
        except ServerError as error:
            return {self.saved: None, self.save_error: gr.HTML(fragments.error_box(error), visible=True)}
        return {self.saved: file, self.save_error: gr.HTML("", visible=False)}

    def _sentences(self, session: Session, model: str | None, index: str | None) -> str:
        return _or_error(lambda: self.handlers.sentences(session, model, index or None))

    def _images(self, session: Session, model: str | None, index: str | None, text: str) -> str:
        return _or_error(lambda: self.handlers.images(session, text, model, index or None))


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
    """The controls beside the image as the way maps are drawn."""
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


def _of_comparison(compared: Comparison | None, look: Look) -> Look:
    """Before anything was asked under Query the threshold is the model's own."""
    return (
        look if compared is None or look.heat else replace(look, threshold=round(compared.right.reading.threshold, 2))
    )


def _or_error(work: Callable[[], str]) -> str:
    try:
        return work()
    except ServerError as error:
        return fragments.error_box(error)
