"""The reading room: a page that asks a RayZero server over HTTP. ``python -m ui.app --server URL --port 7860``"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

# Before gradio is imported, which reads it then: a page beside patients' images reports to no one.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from ui.client import Server
from ui.handlers import Handlers
from ui.page import Page

TOKEN_VARIABLE = "RAYZERO_API_TOKEN"
# A CT volume; the server has limits of its own for each kind of file.
MAX_FILE_SIZE = "512mb"

_STYLE = (Path(__file__).parent / "style.css").read_text()


def build_page(server_url: str) -> gr.Blocks:
    """The page over the server at ``server_url``; the token is read from RAYZERO_API_TOKEN."""
    server = Server(server_url, os.environ.get(TOKEN_VARIABLE) or None)
    page = Page(Handlers(server)).blocks
    # Every request waits its turn in the queue, those made by hand too.
    page.queue(max_size=64, default_concurrency_limit=8, api_open=False)
    return page


def launch(server_url: str, *, host: str = "127.0.0.1", port: int = 7860, block: bool = True) -> str:
    """Serve the page and return its URL. ``block`` waits until the process is told to end."""
    page = build_page(server_url)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        **_settings(),
    )
    if block:
        page.block_thread()
    return str(url)


def mount(app: Any, server_url: str, path: str) -> Any:
    """The page under ``path`` of a FastAPI application, which is returned; what serve.page runs."""
    return gr.mount_gradio_app(app, build_page(server_url), path, **_settings())


def _settings() -> dict[str, Any]:
    return {
        "show_error": False,
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "run_history": False,
        "footer_links": [],
        "max_file_size": MAX_FILE_SIZE,
        "theme": _theme(),
        "css": _STYLE,
    }


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
