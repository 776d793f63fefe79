"""The Retrieve tab: sentences of reports that fit the image, images that fit a sentence."""

from __future__ import annotations

import gradio as gr

from ui import fragments
from ui.handlers import Handlers
from ui.session import Session
from ui.wiring import Updates, or_error


class RetrieveTab:
    """Searches of the examples, or of an index."""

    def __init__(self, handlers: Handlers, session: gr.State) -> None:
        self._handlers = handlers
        self._session = session
        self.index = gr.Dropdown([], label="Search in", visible=False, elem_id="index")
        with gr.Row():
            with gr.Column(min_width=300):
                gr.HTML("<h3>Reports that fit this image</h3>")
                self._find_sentences = gr.Button("Search reports", elem_id="find-sentences")
                self._sentences = gr.HTML(fragments.hint("Ranked sentences appear here."), elem_id="sentences")
            with gr.Column(min_width=300):
                gr.HTML("<h3>Images that fit a sentence</h3>")
                with gr.Row():
                    self._text = gr.Textbox(
                        placeholder="pleural effusion",
                        label="Finding or sentence",
                        show_label=False,
                        container=False,
                        elem_id="text",
                        scale=3,
                    )
                    self._find_images = gr.Button("Search images", scale=1, min_width=160, elem_id="find-images")
                self._hits = gr.HTML(fragments.hint("Ranked images appear here."), elem_id="hits")

    def choose(self, session: Session) -> Updates:
        """What can be searched."""
        names = [(known["name"], known["name"]) for known in session.indexes]
        return {self.index: gr.Dropdown([("the examples", ""), *names], value="", visible=bool(names))}

    def wire(self, model: gr.Dropdown) -> None:
        """Search with ``model``."""
        searched = [self._session, model, self.index]
        self._find_sentences.click(self._search_sentences, searched, self._sentences)
        gr.on([self._find_images.click, self._text.submit], self._search_images, [*searched, self._text], self._hits)

    def _search_sentences(self, session: Session, model: str | None, index: str | None) -> str:
        return or_error(lambda: self._handlers.sentences(session, model, index or None))

    def _search_images(self, session: Session, model: str | None, index: str | None, text: str) -> str:
        return or_error(lambda: self._handlers.images(session, text, model, index or None))
