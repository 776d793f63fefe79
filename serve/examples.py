"""Example studies that the operator ships: a folder of image files and an ``examples.json`` that describes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rayzero.config import ConfigError
from serve.images import Kind, image_id_of, kind_of


class Example(BaseModel):
    """One entry of ``examples.json``. ``sentences`` (or ``report``) make the study part of the retrieval index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    file: str
    title: str
    caption: str = ""
    suggested_prompts: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    report: str = ""


@dataclass(frozen=True)
class ExampleStudy:
    """An example, the file that holds its image, what that is, and the image's id."""

    example: Example
    path: Path
    image_id: str
    kind: Kind


class ExamplesError(ConfigError):
    """The examples folder is not usable; the message names the file and the entry."""


class ExampleSet:
    """The examples by id and by image, in the order of ``examples.json``."""

    def __init__(self, studies: list[ExampleStudy]) -> None:
        self.studies = studies
        self._by_id = {study.example.id: study for study in studies}
        self._by_image = {study.image_id: study for study in studies}
        # Distinct sentences of the index with the examples that say them.
        self.sentences: dict[str, list[str]] = {}
        for study in studies:
            for sentence in dict.fromkeys(study.example.sentences):
                self.sentences.setdefault(sentence, []).append(study.example.id)

    @classmethod
    def load(cls, folder: str) -> ExampleSet:
        """The examples of ``folder``; none when ``folder`` is empty text. Raises ExamplesError."""
        if not folder:
            return cls([])
        root = Path(folder).resolve()
        try:
            entries = TypeAdapter(list[Example]).validate_python(json.loads((root / "examples.json").read_text()))
        except (OSError, ValueError, ValidationError) as error:
            raise ExamplesError(f"{root / 'examples.json'}: {error}") from None
        return cls([_study(root, entry) for entry in entries])

    def by_id(self, example_id: str) -> ExampleStudy | None:
        """The example of that id."""
        return self._by_id.get(example_id)

    def by_image(self, image_id: str) -> ExampleStudy | None:
        """The example whose image that is."""
        return self._by_image.get(image_id)


def _study(root: Path, example: Example) -> ExampleStudy:
    path = (root / example.file).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise ExamplesError(f"{root / 'examples.json'}: example {example.id}: no file {example.file} in this folder")
    data = path.read_bytes()
    return ExampleStudy(example, path, image_id_of(data), kind_of(data))
