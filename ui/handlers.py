"""What happens when a reader does something. Handlers take and give values; ``ui.app`` wires them to components."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ui import fragments
from ui.client import Server, ServerError
from ui.overlay import Look
from ui.session import Reading, Session, Study, to_reading

_FALLBACK = "pneumonia\npleural effusion\npneumothorax\ncardiomegaly\nlung nodule"
_NONE = "(none)"


def parse_findings(text: str) -> list[str]:
    """Findings typed one a line, in order, each once."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def look(opacity: float, threshold: float, colours: str, scale: str, marks: bool) -> Look:
    """The controls beside the image as the way a map is drawn."""
    return Look(opacity / 100, threshold, colours, scale == "stretch", marks)


class Handlers:
    """The page's behaviour over one server. Holds nothing of any session."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def connect(self, session: Session) -> dict[str, Any]:
        """Fetch the models and examples. What the page shows of the server, by name, and the session."""
        try:
            models = tuple(self.server.models())
            examples = tuple(self.server.examples())
            session = replace(session, models=models, examples=examples, connected=True)
            gallery = self.gallery(session)
        except ServerError as error:
            return {
                "session": replace(session, connected=False),
                "away": gr.HTML(fragments.error_box(error), visible=True),
                "retry": gr.Button(visible=True),
                "timer": gr.Timer(active=True),
            }
        names = [model["name"] for model in models]
        suggested = "\n".join(models[0]["vocabulary"][:6]) or _FALLBACK
        updates: dict[str, Any] = {
            "session": session,
            "away": gr.HTML("", visible=False),
            "retry": gr.Button(visible=False),
            "timer": gr.Timer(active=False),
            "gallery": gallery,
            "model": gr.Dropdown(names, value=names[0], visible=len(names) > 1),
            "vocabulary": gr.Dropdown(models[0]["vocabulary"], value=None, visible=bool(models[0]["vocabulary"])),
            "about": "".join(fragments.card(model) for model in models),
        }
        if not session.suggested:
            updates["findings"] = suggested
            updates["session"] = replace(session, suggested=suggested)
        return updates

    def gallery(self, session: Session) -> str:
        """The examples with the chosen one marked. Raises ServerError."""
        pictures = [self.server.thumbnail(example["preview"]) for example in session.examples]
        chosen = session.study.image_id if session.study else None
        return fragments.gallery(session.examples, pictures, chosen)

    def pick(self, session: Session, example_id: str, findings: str) -> tuple[Session, str]:
        """An example was chosen: it becomes the study, with its suggestions unless the reader typed their own."""
        example = next((example for example in session.examples if example["id"] == example_id), None)
        if example is None:
            return session, findings
        suggested = "\n".join(example["suggested_prompts"])
        if suggested and findings.strip() in ("", session.suggested.strip()):
            findings = suggested
            session = replace(session, suggested=suggested)
        study = Study(example["title"], example["caption"], image_id=example["image_id"])
        return replace(session, study=study, reading=None), findings

    def take_upload(self, session: Session, path: str | None) -> Session:
        """A file was uploaded: keep its bytes in the session and leave no copy on this machine."""
        if path is None:
            return session
        file = Path(path)
        data = file.read_bytes()
        file.unlink(missing_ok=True)
        return replace(session, study=Study("Your image", upload=data), reading=None)

    def ask(self, session: Session, findings: str, model: str | None) -> Session:
        """Ask the server about the study. Raises ServerError."""
        if session.study is None:
            raise ServerError("No image yet", "Choose an example or drop a file, then ask.")
        prompts = parse_findings(findings)
        if not prompts:
            raise ServerError("No findings yet", "Write at least one finding, one a line, such as pneumonia.")
        answer = self._with_resend(session.study, lambda source: self.server.query(source, prompts, model))
        study = session.study
        if study.preview is None:
            preview = self.server.preview(answer["image"]["preview"])
            study = replace(study, preview=preview, image_id=answer["image"]["image_id"])
        return replace(session, study=study, reading=to_reading(answer))

    def sentences(self, session: Session, model: str | None) -> str:
        """Sentences of the example reports that fit the study. Raises ServerError."""
        if session.study is None:
            raise ServerError("No image yet", "Choose or upload one under Query, then come back.")
        answer = self._with_resend(session.study, lambda source: self.server.sentences(source, model))
        return fragments.sentence_hits(answer, _titles(session))

    def images(self, session: Session, text: str, model: str | None) -> str:
        """Example images that fit a text. Raises ServerError."""
        answer = self.server.images(text, model)
        pictures = {e["id"]: self.server.thumbnail(e["preview"]) for e in session.examples}
        return fragments.image_hits(answer, _titles(session), pictures)

    @staticmethod
    def _with_resend(study: Study, send: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = send(study.source)
        except ServerError as error:
            # The server keeps images for a while only; the session still has the file.
            if error.slug != "unknown-image" or study.upload is None:
                raise
            answer = send(study.upload)
        return answer


def controls(reading: Reading) -> tuple[gr.Dropdown, gr.CheckboxGroup, gr.Slider]:
    """The choices of findings and the threshold that fit a new reading."""
    ranked = sorted(reading.findings, key=lambda finding: -finding.probability)
    names = [finding.label for finding in ranked]
    return (
        gr.Dropdown([*names, _NONE], value=names[0]),
        gr.CheckboxGroup(names, value=[]),
        gr.Slider(value=round(reading.threshold, 2)),
    )


def render(session: Session, heat: str | None, outlined: list[str], view: Look) -> tuple[str, str]:
    """The overlay and the comparison, from the session alone: no request to the server."""
    if session.study is None or session.reading is None:
        empty = fragments.hint("Ask about an image to see maps.")
        return empty, empty
    study, reading = session.study, session.reading
    return fragments.overlay(study, reading, heat, outlined, view), fragments.tiles(study, reading, view)


def _titles(session: Session) -> dict[str, str]:
    return {example["id"]: example["title"] for example in session.examples}
