"""The left column: which study is read, by which model, and what is asked of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from ui import fragments
from ui.client import ServerError
from ui.handlers import Handlers
from ui.session import COMPANIONS, Session
from ui.wiring import PICK, Updates, script

_UPLOAD = "Your own image: DICOM, PNG, JPEG, NIfTI, or a zip of one CT series"


class Question:
    """Examples, the upload, findings, the model and further films of the study."""

    def __init__(self, handlers: Handlers, session: gr.State) -> None:
        self._handlers = handlers
        self._session = session
        self.gallery = gr.HTML(
            fragments.hint("Example studies appear here."),
            js_on_load=PICK,
            apply_default_css=False,
            elem_id="examples",
        )
        gr.HTML(fragments.section(_UPLOAD))
        self.upload = gr.File(label="Your own image", show_label=False, height=128, elem_id="upload", interactive=True)
        self.findings = gr.Textbox(
            label="Findings, one a line", lines=6, max_lines=14, max_length=8000, elem_id="findings"
        )
        self.words = gr.HTML("[]", js_on_load=script("findings.js"), visible="hidden", elem_id="words")
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
        self.of_model = [self.further, *self.companions.values()]
        """What depends on the model."""
        self.of_study = [self.attached, self.detach]
        """What depends on the films of the study."""

    def wire_films(self) -> list[Any]:
        """Take further films of the study and put them away again; each of these changes the question."""
        changed = [self._session, self.error, *self.of_study]
        films = [
            file.upload(
                lambda session, path, name=name: self._companion(session, name, path),
                [self._session, file],
                [*changed, file],
                show_progress="hidden",
            )
            for name, file in self.companions.items()
        ]
        return [*films, self.detach.click(self._detach, self._session, changed, show_progress="hidden")]

    def reads(self, session: Session, model: str | None) -> Updates:
        """The further films that a model reads."""
        known = session.model(model) if model else None
        reads = known["companions"] if known else []
        updates: Updates = {name: gr.File(visible=key in reads) for key, name in self.companions.items()}
        return {self.further: gr.Accordion(visible=bool(reads)), **updates}

    def films(self, session: Session) -> Updates:
        """Which further films go with the question."""
        names = [] if session.study is None else [name.replace("_", " ") for name in session.study.companions]
        told = f'<p class="rz-foot">With the question: {", ".join(names)}.</p>' if names else ""
        return {self.attached: told, self.detach: gr.Button(visible=bool(names))}

    def _companion(self, session: Session, name: str, path: str | None) -> Updates:
        # Emptied like the first dropzone: the name of the file may be a patient's.
        empty: Updates = {self.companions[name]: None}
        try:
            session = self._handlers.take_companion(session, name, path)
        except ServerError as error:
            return {**empty, self.error: gr.HTML(fragments.error_box(error), visible=True)}
        return {**empty, self._session: session, **self.films(session)}

    def _detach(self, session: Session) -> Updates:
        if session.study is None:
            return {self._session: session}
        session = replace(session, study=replace(session.study, companions={}))
        return {self._session: session, **self.films(session)}
