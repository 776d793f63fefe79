"""The page: the question beside the tabs, and what joins them. Sessions live in ``gr.State`` alone."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import gradio as gr

from ui import cards, fragments
from ui.client import ServerError
from ui.compare_tab import CompareTab
from ui.handlers import Handlers
from ui.query_tab import QueryTab
from ui.question import Question
from ui.retrieve_tab import RetrieveTab
from ui.session import Session
from ui.wiring import Updates, script

_RETRY_S = 4
_SESSION_S = 3600


class Page:
    """The parts of the page and their wiring. One instance makes one ``gr.Blocks``."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        with gr.Blocks(
            title="RayZero reading room", analytics_enabled=False, delete_cache=(600, _SESSION_S), fill_width=True
        ) as blocks:
            self.blocks: gr.Blocks = blocks
            session = self._session = gr.State(Session(), time_to_live=_SESSION_S)
            self._timer = gr.Timer(_RETRY_S, active=False)
            gr.HTML(fragments.header())
            with gr.Row(elem_classes="rz-away"):
                self._away = gr.HTML(visible=False)
                self._retry = gr.Button("Retry now", visible=False, scale=0, size="sm", elem_id="retry")
            with gr.Row(elem_classes="rz-main"):
                with gr.Column(scale=3, min_width=300):
                    self._question = Question(handlers, session)
                with gr.Column(scale=8, min_width=320), gr.Tabs():
                    with gr.Tab("Query"):
                        self._query = QueryTab(handlers, session)
                    with gr.Tab("Compare"):
                        self._compare = CompareTab(handlers, session)
                    with gr.Tab("Retrieve"):
                        self._retrieve = RetrieveTab(handlers, session)
                    with gr.Tab("Explain"):
                        self._about = gr.HTML(fragments.hint("The model's card appears here."), elem_id="about")
            self._connection = [self._away, self._retry, self._timer]
            self._asked = [session, self._question.findings, self._question.model, *self._query.look]
            self._answer = [session, self._question.error, *self._connection, *self._query.changed]
            self._wire_connection()
            self._wire_question()
            self._compare.wire(self._question.findings, self._question.model, self._query.look)
            self._retrieve.wire(self._question.model)

    def _wire_connection(self) -> None:
        question = self._question
        shown = [
            *(self._session, *self._connection, question.gallery, question.words, question.findings),
            *(question.model, *question.of_model, *self._compare.choices, self._retrieve.index, self._about),
        ]
        triggers = [self.blocks.load, self._retry.click, self._timer.tick]
        connected = gr.on(triggers, self._connect, [self._session, question.model], shown, show_progress="hidden")
        # What could not be answered while the server was away is asked again.
        connected.then(self._resume, self._asked, self._answer, show_progress="hidden")
        self.blocks.load(None, js=script("page.js"))

    def _wire_question(self) -> None:
        session, question, query = self._session, self._question, self._query
        chosen = [
            *(session, question.findings, question.gallery, question.upload, question.error, *question.of_study),
            *(question.model, *question.of_model, *self._compare.choices, query.view, query.bars, query.point),
            *(self._about, question.words),
        ]
        taken = question.upload.upload(
            self._take, [session, question.upload, question.model], chosen, show_progress="hidden"
        )
        picked = question.gallery.click(
            self._pick, [session, question.findings, question.model], chosen, show_progress="hidden"
        )
        waiting = [query.view, query.bars]
        for then in (question.ask.click, question.findings.submit, question.model.input, picked.then, taken.then):
            # A newer question is asked while an older one waits for its answer, which is then let go.
            answered = then(self._ask, self._asked, self._answer, trigger_mode="multiple", show_progress_on=waiting)
            answered.then(None, js="() => window.rayzero.show()")
        changed = [*question.of_model, self._about, question.words]
        question.model.input(self._change_model, [session, question.model], changed, show_progress="hidden")
        for change in question.wire_films():
            change.then(self._ask, self._asked, self._answer, show_progress_on=waiting)

    # Listeners: each takes the values of components and returns what to change of which.

    def _connect(self, session: Session, model: str | None) -> Updates:
        first = not session.connected
        try:
            session = self._handlers.connect(session)
            gallery = self._handlers.gallery(session)
        except ServerError as error:
            return {self._session: replace(session, connected=False), **self._lost(error)}
        updates: Updates = {
            self._session: session,
            **self._found(),
            self._question.gallery: gallery,
            **self._of_model(session, self._handlers.fitting_model(session, model)),
            **self._retrieve.choose(session),
            **self._choices(session, model),
        }
        if first and session.study is None:
            updates[self._question.findings] = session.suggested
        return updates

    def _choices(self, session: Session, model: str | None) -> Updates:
        """The models that read the study, and what follows from the one that is chosen of them."""
        fitting = self._handlers.fitting_model(session, model)
        names = [known["name"] for known in self._handlers.choices(session)]
        return {
            self._question.model: gr.Dropdown(names, value=fitting, visible=len(session.models) > 1),
            **self._question.reads(session, fitting),
            **self._compare.choose(session, names, fitting),
        }

    def _of_model(self, session: Session, model: str | None) -> Updates:
        return {
            self._about: cards.cards(session.models, model),
            self._question.words: json.dumps(self._handlers.vocabulary(session, model)),
        }

    def _change_model(self, session: Session, model: str | None) -> Updates:
        return {**self._question.reads(session, model), **self._of_model(session, model)}

    def _pick(self, session: Session, findings: str, model: str | None, event: gr.EventData) -> Updates:
        session, findings = self._handlers.pick(self._awake(session), str(event.pick), findings)
        return {**self._chosen(session, model), self._question.findings: findings}

    def _take(self, session: Session, path: str | None, model: str | None) -> Updates:
        # The dropzone is emptied at once, so that the file's name does not stay on the screen.
        session = self._handlers.take_upload(self._awake(session), path)
        return {**self._chosen(session, model), self._question.upload: None}

    def _awake(self, session: Session) -> Session:
        # The question that follows says so when the server is away.
        with suppress(ServerError):
            return self._handlers.awake(session)
        return session

    def _chosen(self, session: Session, model: str | None) -> Updates:
        session.turn.take()
        updates: Updates = {
            self._session: session,
            self._question.error: gr.HTML("", visible=False),
            **self._query.reading(),
            **self._question.films(session),
            **self._choices(session, model),
            **(self._of_model(session, self._handlers.fitting_model(session, model)) if session.models else {}),
        }
        # The question that follows says so when the server is away.
        with suppress(ServerError):
            updates[self._question.gallery] = self._handlers.gallery(session)
        return updates

    def _ask(self, session: Session, findings: str, model: str | None, *look: Any) -> Updates:
        turn = session.turn.take()
        updates = self._answered(session, findings, model, *look)
        return updates if session.turn.number == turn else {self._session: gr.skip()}

    def _answered(self, session: Session, findings: str, model: str | None, *look: Any) -> Updates:
        new = session.reading is None
        try:
            session = self._handlers.ask(session, findings, model)
            shown = self._query.answered(session, *look, new=new)
        except ServerError as error:
            return self._failed(session, error)
        return {self._session: session, self._question.error: gr.HTML("", visible=False), **self._found(), **shown}

    def _resume(self, session: Session, findings: str, model: str | None, *look: Any) -> Updates:
        if not session.pending or not session.connected:
            return {self._session: gr.skip()}
        return self._ask(session, findings, model, *look)

    def _failed(self, session: Session, error: ServerError) -> Updates:
        updates: Updates = {self._session: replace(session, pending=error.passing)}
        if error.passing:
            updates |= {**self._lost(error), self._question.error: gr.HTML("", visible=False)}
        else:
            updates[self._question.error] = gr.HTML(fragments.error_box(error), visible=True)
        return updates | self._query.emptied() if session.reading is None else updates

    def _found(self) -> Updates:
        return {
            self._away: gr.HTML("", visible=False),
            self._retry: gr.Button(visible=False),
            self._timer: gr.Timer(active=False),
        }

    def _lost(self, error: ServerError) -> Updates:
        box = gr.HTML(fragments.error_box(error, again=True), visible=True)
        return {self._away: box, self._retry: gr.Button(visible=True), self._timer: gr.Timer(active=True)}
