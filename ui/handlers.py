"""What happens when a reader does something. Handlers take and give values; ``ui.page`` wires them to components."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ui import fragments, results, viewer
from ui.client import Server, ServerError
from ui.fields import Plane, from_plane
from ui.overlay import Look
from ui.session import Comparison, Cursor, Kind, Reading, Session, Side, Study, kind_of, reads, to_reading

FALLBACK = ("pneumonia", "pleural effusion", "pneumothorax", "cardiomegaly", "lung nodule")

_KIND_WORDS: dict[Kind, str] = {"radiograph": "chest films", "volume": "CT volumes"}


def parse_findings(text: str) -> list[str]:
    """Findings typed one a line, in order, each once."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line))


class Handlers:
    """The page's behaviour over one server. Holds nothing of any session."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def connect(self, session: Session) -> Session:
        """Fetch the models, examples and indexes. Raises ServerError."""
        models, examples = tuple(self.server.models()), tuple(self.server.examples())
        indexes = tuple(self.server.indexes())
        session = replace(session, models=models, examples=examples, indexes=indexes, connected=True)
        if not session.suggested:
            vocabulary = models[0]["vocabulary"][:6] or FALLBACK
            session = replace(session, suggested="\n".join(vocabulary))
        return session

    def awake(self, session: Session) -> Session:
        """The session, connected if it is not: it may have been forgotten after its hour. Raises ServerError."""
        return session if session.models else self.connect(session)

    def gallery(self, session: Session) -> str:
        """The examples with the chosen one marked. Raises ServerError."""
        pictures = [self.server.thumbnail(example["preview"]) for example in session.examples]
        chosen = session.study.image_id if session.study else None
        return fragments.gallery(session.examples, pictures, chosen)

    def vocabulary(self, session: Session, model: str | None) -> list[str]:
        """Findings to propose: the model's own first, then those of the others and of the examples."""
        chosen = session.model(model)
        lists = [chosen["vocabulary"] if chosen else []]
        lists += [other["vocabulary"] for other in session.models]
        lists += [example["suggested_prompts"] for example in session.examples]
        return list(dict.fromkeys(word for words in [*lists, FALLBACK] for word in words))

    def pick(self, session: Session, example_id: str, findings: str) -> tuple[Session, str]:
        """An example was chosen: it becomes the study, with its suggestions unless the reader typed their own."""
        example = _example(session, example_id)
        if example is None:
            return session, findings
        suggested = "\n".join(example["suggested_prompts"])
        if suggested and findings.strip() in ("", session.suggested.strip()):
            findings = suggested
            session = replace(session, suggested=suggested)
        return replace(session, study=example_study(example), reading=None, point=None), findings

    def take_upload(self, session: Session, path: str | None) -> Session:
        """A file was uploaded: keep its bytes in the session and leave no copy on this machine."""
        data = take_file(path)
        if data is None:
            return session
        study = Study("Your image", kind_of(data), upload=data)
        return replace(session, study=study, reading=None, point=None)

    def take_companion(self, session: Session, name: str, path: str | None) -> Session:
        """A further film of the study was uploaded. Raises ServerError while there is no study."""
        data = take_file(path)
        if data is None:
            return session
        if session.study is None:
            raise ServerError("No image yet", "Choose the frontal film first, then its further films.")
        companions = {**session.study.companions, name: data}
        return replace(session, study=replace(session.study, companions=companions))

    def fitting_model(self, session: Session, model: str | None) -> str | None:
        """``model`` if it reads such images as the study, else the first that does."""
        names = [known["name"] for known in self.choices(session)]
        return model if model in names else next(iter(names), None)

    def choices(self, session: Session) -> list[dict[str, Any]]:
        """The models that can be asked about the study; all before there is one."""
        return list(session.models) if session.study is None else session.models_for(session.study.kind)

    def ask(self, session: Session, findings: str, model: str | None) -> Session:
        """Ask the server about the study. Raises ServerError."""
        session = self.awake(session)
        if session.study is None:
            raise ServerError(
                "No image yet", "Choose an example or drop a file, then ask. After an hour the page forgets a session."
            )
        study, reading = self._read(session, session.study, findings, model)
        point = session.point
        if reading.volume and (point is None or session.reading is None):
            point = reading.ranked[0].peak
        return replace(session, study=study, reading=reading, point=point, pending=False)

    def view(self, session: Session, look: Look) -> str:
        """The image with its maps. Asks the server for nothing but pictures of the image. Raises ServerError."""
        study, reading = session.study, session.reading
        if study is None:
            return fragments.hint("Choose an example or drop a file.")
        if reading is not None and reading.volume:
            return viewer.planes(study, reading, look, _cursor(session, reading), self.server.slice)
        return viewer.film(study, reading, look, session.point, self.server.windowed)

    def point_at(self, session: Session, frame: str, x: float, y: float) -> Session:
        """The reader pointed at shares ``x``, ``y`` of a picture."""
        reading = session.reading
        if reading is None:
            return session
        x, y = min(max(x, 0.0), 0.9999), min(max(y, 0.0), 0.9999)
        if reading.volume:
            plane: Plane = "coronal" if frame == "coronal" else "sagittal" if frame == "sagittal" else "axial"
            return replace(session, point=from_plane(plane, reading.shape, _cursor(session, reading), x, y))
        height, width = reading.shape
        return replace(session, point=(0, int(y * height), int(x * width)))

    def to_peak(self, session: Session, label: str | None) -> Session:
        """The cursor of a volume moves to a finding's peak."""
        reading = session.reading
        finding = reading.find(label) if reading and reading.volume else None
        return session if finding is None else replace(session, point=finding.peak)

    def compare_models(self, session: Session, findings: str, left: str | None, right: str | None) -> Session:
        """Two models asked the same about the study. Raises ServerError."""
        if session.study is None:
            raise ServerError("No image yet", "Choose an example or drop a file under Query, then compare.")
        if not left or not right or left == right:
            raise ServerError("Two models are needed", "Choose two different models that read this kind of image.")
        study, first = self._read(session, session.study, findings, left)
        study, second = self._read(session, study, findings, right)
        sides = (Side(left, study, first), Side(right, study, second))
        return replace(session, study=study, comparison=Comparison(*sides, of_time=False))

    def compare_prior(self, session: Session, prior: Study, findings: str, model: str | None) -> Session:
        """The study against a prior one. A model that reads priors gets it with the current film too.

        Raises ServerError.
        """
        if session.study is None:
            raise ServerError("No image yet", "Choose the current image under Query, then a prior here.")
        if prior.kind != session.study.kind:
            raise ServerError("These cannot be compared", "Compare a film with a film, or a CT with a CT.")
        prior, before = self._read(session, prior, findings, model)
        current, known = session.study, session.model(model)
        if known is not None and "prior_frontal" in known["companions"]:
            current = replace(current, companions={**current.companions, "prior_frontal": prior.source})
        current, now = self._read(session, current, findings, model)
        sides = (Side(f"Prior: {prior.title}", prior, before), Side(f"Current: {current.title}", current, now))
        study = replace(session.study, preview=current.preview, image_id=current.image_id)
        return replace(session, study=study, comparison=Comparison(*sides, of_time=True))

    def comparison(self, session: Session, label: str | None, look: Look) -> str:
        """The comparison on the screen. Raises ServerError."""
        compared = session.comparison
        if compared is None:
            return fragments.hint("The two readings appear here, side by side.")
        known = compared.right.reading.find(label) or compared.pairs[0][1]
        pictures = []
        for side in (compared.left, compared.right):
            # Of two models each has a threshold of its own.
            own = look if compared.of_time else replace(look, threshold=side.reading.threshold)
            pictures.append(viewer.small(side.reading, side.study, known.label, own, self.server.slice))
        return results.comparison(compared, known.label, (pictures[0], pictures[1]))

    def sentences(self, session: Session, model: str | None, index: str | None) -> str:
        """Sentences of reports that fit the study. Raises ServerError."""
        if session.study is None:
            raise ServerError("No image yet", "Choose or upload one under Query, then come back.")
        model = _index_model(session, index) or model
        answer = _with_resend(session.study, lambda source: self.server.sentences(source, model, index))
        return results.sentence_hits(answer, _by_id(session))

    def images(self, session: Session, text: str, model: str | None, index: str | None) -> str:
        """Images that fit a text. Raises ServerError."""
        if not text.strip():
            raise ServerError("No text yet", "Write a finding or a sentence, such as pleural effusion.")
        answer = self.server.images(text, _index_model(session, index) or model, index)
        examples = _by_id(session)
        found = [name for hit in answer["results"] for name in hit["example_ids"][:1] if name in examples]
        pictures = {name: self.server.thumbnail(examples[name]["preview"]) for name in found}
        return results.image_hits(answer, examples, pictures)

    def _read(self, session: Session, study: Study, findings: str, model: str | None) -> tuple[Study, Reading]:
        prompts = parse_findings(findings)
        if not prompts:
            raise ServerError("No findings yet", "Write at least one finding, one a line, such as pneumonia.")
        known = session.model(model)
        if known is None or reads(known) != study.kind:
            kind = _KIND_WORDS[study.kind]
            raise ServerError(
                "No model reads this image", f"No model of this server reads {kind}; choose another image."
            )
        companions = {name: film for name, film in study.companions.items() if name in known["companions"]}
        answer = _with_resend(study, lambda source: self.server.query(source, prompts, model, companions))
        reading = to_reading(answer, calibrated=known["calibrated"])
        if study.preview is None:
            preview = self.server.preview(answer["image"]["preview"])
            study = replace(study, preview=preview, image_id=answer["image"]["image_id"])
        return study, reading


def example_study(example: dict[str, Any]) -> Study:
    """An example as a study."""
    return Study(
        example["title"],
        example["input"],
        caption=example["caption"],
        image_id=example["image_id"],
        file=example["file"],
    )


def take_file(path: str | None) -> bytes | None:
    """The bytes of an uploaded file, whose copy on this machine is deleted."""
    if path is None:
        return None
    file = Path(path)
    data = file.read_bytes()
    file.unlink(missing_ok=True)
    return data


def _with_resend(study: Study, send: Any) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = send(study.source)
    except ServerError as error:
        # The server keeps images for a while only; the session still has the file.
        if error.slug != "unknown-image" or study.upload is None:
            raise
        answer = send(study.upload)
    return answer


def _cursor(session: Session, reading: Reading) -> Cursor:
    depth, height, width = reading.shape
    return session.point or (depth // 2, height // 2, width // 2)


def _example(session: Session, example_id: str) -> dict[str, Any] | None:
    return next((example for example in session.examples if example["id"] == example_id), None)


def _by_id(session: Session) -> dict[str, dict[str, Any]]:
    return {example["id"]: example for example in session.examples}


def _index_model(session: Session, index: str | None) -> str | None:
    """An index is searched with the model that it was built with."""
    return next((known["model"] for known in session.indexes if known["name"] == index), None)
