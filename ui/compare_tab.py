"""The Compare tab: two models on one study, or a study against a prior one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from ui import fragments
from ui.client import ServerError
from ui.controls import read_look
from ui.handlers import Handlers, example_study, take_file
from ui.overlay import Look
from ui.session import Comparison, Session, Study, kind_of
from ui.wiring import PICK, Updates, or_error


class CompareTab:
    """Two readings side by side."""

    def __init__(self, handlers: Handlers, session: gr.State) -> None:
        self._handlers = handlers
        self._session = session
        with gr.Row():
            with gr.Column(min_width=300):
                gr.HTML("<h3>Two models on this image</h3>")
                with gr.Row():
                    self._left = gr.Dropdown([], label="First", elem_id="left", min_width=120)
                    self._right = gr.Dropdown([], label="Second", elem_id="right", min_width=120)
                self._compare = gr.Button("Compare the models", elem_id="compare")
            with gr.Column(min_width=300):
                gr.HTML("<h3>This image against a prior one</h3>")
                self._prior = gr.Dropdown([], label="A prior of the examples", elem_id="prior")
                self._prior_file = gr.File(label="Or your own prior", height=128, elem_id="prior-file")
        self._error = gr.HTML(visible=False, elem_id="compare-error")
        self._compared = gr.HTML(
            fragments.hint("The two readings appear here, side by side."),
            js_on_load=PICK,
            apply_default_css=False,
            elem_id="compared",
        )
        self.choices = [self._left, self._right, self._prior]
        """What depends on the study."""

    def choose(self, session: Session, names: list[str], fitting: str | None) -> Updates:
        """The models ``names`` that read the study, ``fitting`` the first, and the priors to compare it with."""
        study = session.study
        alike = [one for one in session.examples if study is None or one["input"] == study.kind]
        others = [(one["title"], one["id"]) for one in alike if study is None or one["image_id"] != study.image_id]
        return {
            self._left: gr.Dropdown(names, value=fitting),
            self._right: gr.Dropdown(names, value=next((name for name in names if name != fitting), None)),
            self._prior: gr.Dropdown(others, value=None),
        }

    def wire(self, findings: gr.Textbox, model: gr.Dropdown, look: list[Any]) -> None:
        """Compare about ``findings`` by ``model``, drawn like ``look``."""
        session, compared = self._session, self._compared
        shown = [session, compared, self._error]
        asked = [session, findings]
        self._compare.click(self._models, [*asked, self._left, self._right, *look], shown, show_progress_on=compared)
        self._prior.input(self._with_example, [*asked, model, self._prior, *look], shown, show_progress_on=compared)
        self._prior_file.upload(
            self._with_file,
            [*asked, model, self._prior_file, *look],
            [*shown, self._prior_file],
            show_progress_on=compared,
        )
        compared.click(self._show_finding, [session, *look], compared, show_progress="hidden")

    def _models(self, session: Session, findings: str, left: str | None, right: str | None, *look: Any) -> Updates:
        return self._show(session, look, lambda: self._handlers.compare_models(session, findings, left, right))

    def _with_example(
        self, session: Session, findings: str, model: str | None, prior: str | None, *look: Any
    ) -> Updates:
        example = next((one for one in session.examples if one["id"] == prior), None)
        if example is None:
            return {self._session: session}
        study = example_study(example)
        return self._show(session, look, lambda: self._handlers.compare_prior(session, study, findings, model))

    def _with_file(self, session: Session, findings: str, model: str | None, path: str | None, *look: Any) -> Updates:
        data = take_file(path)
        if data is None:
            return {self._session: session}
        prior = Study("your prior", kind_of(data), upload=data)
        updates = self._show(session, look, lambda: self._handlers.compare_prior(session, prior, findings, model))
        return {**updates, self._prior_file: None}

    def _show(self, session: Session, look: tuple[Any, ...], work: Callable[[], Session]) -> Updates:
        try:
            session = work()
            shown = self._handlers.comparison(session, None, _look(session.comparison, *look))
        except ServerError as error:
            return {self._session: session, self._error: gr.HTML(fragments.error_box(error), visible=True)}
        return {self._session: session, self._compared: shown, self._error: gr.HTML("", visible=False)}

    def _show_finding(self, event: gr.EventData, session: Session, *look: Any) -> Any:
        seen = _look(session.comparison, *look)
        return or_error(lambda: self._handlers.comparison(session, str(event.pick), seen))


def _look(compared: Comparison | None, *look: Any) -> Look:
    """Before anything was asked under Query the threshold is the model's own."""
    seen = read_look(*look)
    if compared is None or seen.heat:
        return seen
    return replace(seen, threshold=round(compared.right.reading.threshold, 2))
