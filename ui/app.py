"""The reading room: a page that asks a RayZero server over HTTP. ``python -m ui.app --server URL --port 7860``"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before gradio is imported, which reads it then: a page beside patients' images reports to no one.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from ui import fragments
from ui.client import Server, ServerError
from ui.handlers import Handlers, controls, look, render
from ui.overlay import COLOUR_MAPS
from ui.session import Session

TOKEN_VARIABLE = "RAYZERO_API_TOKEN"
MAX_FILE_SIZE = "64mb"

_STYLE = (Path(__file__).parent / "style.css").read_text()
_RETRY_S = 4

# Buttons inside our own HTML say which of them was pressed; one listener outlives every redraw of the content.
_PICK = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (button) trigger('click', {pick: button.dataset.pick});
});"""
_SESSION_S = 3600


def build_page(server_url: str) -> gr.Blocks:
    """The page over the server at ``server_url``; the token is read from RAYZERO_API_TOKEN."""
    server = Server(server_url, os.environ.get(TOKEN_VARIABLE) or None)
    return _Page(Handlers(server)).blocks


def launch(server_url: str, *, host: str = "127.0.0.1", port: int = 7860, block: bool = True) -> str:
    """Serve the page and return its URL. ``block`` waits until the process is told to end."""
    page = build_page(server_url)
    page.queue(max_size=64, default_concurrency_limit=8)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        show_error=False,
        quiet=True,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=MAX_FILE_SIZE,
        prevent_thread_lock=True,
        theme=_theme(),
        css=_STYLE,
    )
    if block:
        page.block_thread()
    return str(url)


def _theme() -> gr.themes.Base:
    # Fonts of the reader's own system: nothing is fetched from elsewhere.
    return gr.themes.Base(
        primary_hue="sky",
        secondary_hue="sky",
        neutral_hue="slate",
        radius_size="sm",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    ).set(
        # The defaults fall short of a contrast of 4.5 to 1.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
    )


class _Page:
    """Components and their wiring. One instance makes one ``gr.Blocks``; sessions live in ``gr.State`` alone."""

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
                    self._build_tabs()
            self._answer = [
                *(self.session, self.original, self.bars, self.heat, self.outlined, self.threshold),
                *(self.error, self.away, self.retry, self.timer, self.controls),
            ]
            self._wire()

    def _build_question(self) -> None:
        self.gallery = gr.HTML(
            fragments.hint("Example studies appear here."),
            js_on_load=_PICK,
            apply_default_css=False,
            elem_id="examples",
        )
        gr.HTML(fragments.section("Your own image: DICOM, PNG or JPEG"))
        self.upload = gr.File(show_label=False, type="filepath", height=136, elem_id="upload", interactive=True)
        self.findings = gr.Textbox(
            label="Findings, one a line", lines=6, max_lines=14, max_length=8000, elem_id="findings"
        )
        self.vocabulary = gr.Dropdown([], label="Add one the model was evaluated on", visible=False, value=None)
        self.model = gr.Dropdown([], label="Model", visible=False)
        self.ask = gr.Button("Ask", variant="primary", elem_id="ask")
        self.error = gr.HTML(visible=False, elem_id="error")

    def _build_tabs(self) -> None:
        with gr.Tab("Query"):
            with gr.Row(elem_classes="rz-pair"):
                with gr.Column(min_width=300):
                    self.original = gr.HTML(fragments.hint("Choose an example or drop a file."), elem_id="original")
                with gr.Column(min_width=300):
                    self.overlay = gr.HTML(fragments.hint("The map appears here."), elem_id="overlay")
            with gr.Row():
                with gr.Column(scale=5, min_width=300):
                    self.bars = gr.HTML(js_on_load=_PICK, apply_default_css=False, elem_id="bars")
                with gr.Column(scale=6, min_width=300, visible=False) as self.controls:
                    self._build_controls()
        with gr.Tab("Compare"):
            self.tiles = gr.HTML(fragments.hint("Ask about an image to see one map per finding."), elem_id="tiles")
        with gr.Tab("Retrieve"):
            self._build_retrieve()
        with gr.Tab("Model"):
            self.about = gr.HTML(fragments.hint("The model's card appears here."), elem_id="about")

    def _build_controls(self) -> None:
        with gr.Row():
            self.heat = gr.Dropdown([], label="Heat map of", elem_id="heat", min_width=150)
            self.colours = gr.Dropdown(list(COLOUR_MAPS), value="turbo", label="Colours", min_width=110)
        self.outlined = gr.CheckboxGroup([], label="Outlines of", elem_id="outlined")
        with gr.Row():
            self.opacity = gr.Slider(0, 100, 55, step=1, label="Opacity, %", elem_id="opacity", min_width=200)
            self.threshold = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold", elem_id="threshold", min_width=200)
        scales = [("0 to 1", "fixed"), ("its own range", "stretch")]
        self.scale = gr.Radio(scales, value="fixed", label="Colour scale")
        self.marks = gr.Checkbox(True, label="Box and peak")
        self._view = [self.opacity, self.threshold, self.colours, self.scale, self.marks]

    def _build_retrieve(self) -> None:
        with gr.Row():
            with gr.Column(min_width=300):
                gr.HTML("<h3>Sentences that fit this image</h3>")
                self.find_sentences = gr.Button("Search the example reports", elem_id="find-sentences")
                self.sentences = gr.HTML(fragments.hint("Ranked sentences appear here."), elem_id="sentences")
            with gr.Column(min_width=300):
                gr.HTML("<h3>Example images that fit a text</h3>")
                with gr.Row():
                    self.text = gr.Textbox(
                        placeholder="pleural effusion", show_label=False, container=False, elem_id="text", scale=3
                    )
                    self.find_images = gr.Button("Search", scale=1, min_width=90, elem_id="find-images")
                self.hits = gr.HTML(fragments.hint("Ranked images appear here."), elem_id="hits")

    def _wire(self) -> None:
        self._wire_connection()
        drawn = [self.session, self.heat, self.outlined, *self._view]
        pictures = [self.overlay, self.tiles]
        chosen = [self.session, self.findings, self.gallery]
        picked = self.gallery.click(self._pick, [self.session, self.findings], chosen)
        taken = self.upload.upload(self._take, [self.session, self.upload], [self.session, self.upload, self.gallery])
        for then in (self.ask.click, picked.then, taken.then):
            answered = then(self._ask, [self.session, self.findings, self.model], self._answer)
            answered.then(_draw, drawn, pictures, show_progress="hidden")
        self.bars.click(_show_heat, self.session, self.heat).then(_draw, drawn, pictures, show_progress="hidden")
        changed = [
            *(self.heat.input, self.outlined.input, self.opacity.input, self.threshold.input),
            *(self.colours.input, self.scale.input, self.marks.input),
        ]
        gr.on(changed, _draw, drawn, pictures, show_progress="hidden", trigger_mode="always_last")
        self.vocabulary.input(_add_finding, [self.findings, self.vocabulary], [self.findings, self.vocabulary])
        self.find_sentences.click(self._sentences, [self.session, self.model], self.sentences)
        gr.on(
            [self.find_images.click, self.text.submit], self._images, [self.session, self.text, self.model], self.hits
        )

    def _wire_connection(self) -> None:
        shown = {
            "session": self.session,
            "away": self.away,
            "retry": self.retry,
            "timer": self.timer,
            "gallery": self.gallery,
            "model": self.model,
            "vocabulary": self.vocabulary,
            "about": self.about,
            "findings": self.findings,
        }

        def connect(session: Session) -> dict[Any, Any]:
            return {shown[name]: value for name, value in self.handlers.connect(session).items()}

        triggers = [self.blocks.load, self.retry.click, self.timer.tick]
        gr.on(triggers, connect, self.session, list(shown.values()), show_progress="hidden")

    def _pick(self, session: Session, findings: str, event: gr.EventData) -> tuple[Session, str, str]:
        session, findings = self.handlers.pick(session, str(event.pick), findings)
        return session, findings, self.handlers.gallery(session)

    def _take(self, session: Session, path: str | None) -> tuple[Session, None, str]:
        # The dropzone is emptied at once, so that the file's name does not stay on the screen.
        session = self.handlers.take_upload(session, path)
        return session, None, self.handlers.gallery(session)

    def _ask(self, session: Session, findings: str, model: str | None) -> dict[Any, Any]:
        try:
            session = self.handlers.ask(session, findings, model)
        except ServerError as error:
            return self._failed(session, error)
        assert session.study is not None
        assert session.reading is not None
        heat, outlined, threshold = controls(session.reading)
        return {
            self.session: session,
            self.original: fragments.original(session.study),
            self.bars: fragments.bars(session.reading),
            self.heat: heat,
            self.outlined: outlined,
            self.threshold: threshold,
            self.error: gr.HTML("", visible=False),
            self.controls: gr.Column(visible=True),
        }

    def _failed(self, session: Session, error: ServerError) -> dict[Any, Any]:
        box = gr.HTML(fragments.error_box(error), visible=True)
        updates: dict[Any, Any] = {self.session: session}
        if error.away:
            updates |= {self.away: box, self.retry: gr.Button(visible=True), self.timer: gr.Timer(active=True)}
        else:
            updates[self.error] = box
        if session.reading is None:
            # What is left of an earlier image must not stand beside a new one.
            blank = fragments.hint("No image to show.")
            updates |= {self.original: blank, self.bars: "", self.controls: gr.Column(visible=False)}
        return updates

    def _sentences(self, session: Session, model: str | None) -> str:
        return _or_error(lambda: self.handlers.sentences(session, model))

    def _images(self, session: Session, text: str, model: str | None) -> str:
        return _or_error(lambda: self.handlers.images(session, text, model))


def _draw(session: Session, heat: str, outlined: list[str], *view: Any) -> tuple[str, str]:
    return render(session, heat, outlined, look(*view))


def _show_heat(session: Session, event: gr.EventData) -> Any:
    known = session.reading is not None and session.reading.find(str(event.pick)) is not None
    return str(event.pick) if known else gr.skip()


def _add_finding(findings: str, name: str | None) -> tuple[str, None]:
    return f"{findings.rstrip()}\n{name}".strip() if name else findings, None


def _or_error(work: Callable[[], str]) -> str:
    try:
        return work()
    except ServerError as error:
        return fragments.error_box(error)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m ui.app", description="The RayZero reading room")
    parser.add_argument("--server", default="http://127.0.0.1:8000", help="address of the RayZero server")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    if not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port}: give 1 to 65535")
    print(f"Reading room on http://{args.host}:{args.port} over {args.server}", flush=True)
    launch(args.server, host=args.host, port=args.port)


if __name__ == "__main__":
    main()
