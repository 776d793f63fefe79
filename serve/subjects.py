"""What a request asks about: a radiograph, a volume, or a study of several films; and that as a model's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayzero.bundle import AnyGeometry
from rayzero.config import Companion
from rayzero.studies.examples import COMPANIONS, prepare_views
from rayzero.studies.preprocess import Geometry, prepare
from rayzero.studies.volume_preprocess import prepare_volume
from serve.engine import Description, ModelInput
from serve.images import StoredImage
from serve.pacs import Address
from serve.problems import Problem


@dataclass(frozen=True)
class Source:
    """A file's bytes, the id of an image that was read before or ships as an example, or where one lies in a PACS.

    One that is ``patient`` waits for its turn to be read however long that takes: of a batch, or of a search.
    """

    data: bytes | None = field(default=None, repr=False)
    image_id: str | None = None
    address: Address | None = None
    patient: bool = False

    def __bool__(self) -> bool:
        return self.data is not None or self.image_id is not None or self.address is not None


@dataclass(frozen=True)
class Subject:
    """The image that is asked about and, of a study, its companions."""

    image: StoredImage
    companions: Mapping[Companion, StoredImage] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names the images in their roles."""
        return "/".join([self.image.image_id, *(f"{name}={one.image_id}" for name, one in self.companions.items())])


@dataclass(frozen=True)
class Prepared:
    """A subject as a model's input, and the geometry that maps results back to the image."""

    given: ModelInput
    geometry: AnyGeometry

    @property
    def nbytes(self) -> int:
        """Memory of the input."""
        return int(self.given.pixels.nbytes)


def check_companions(names: Mapping[Companion, Any], about: Description) -> None:
    """Raises Problem (422) for a companion that the model does not read: it would be left out without a word."""
    for name in names:
        if name not in about.companions:
            reads = ", ".join(about.companions) or "none"
            detail = f"Model {about.name} does not read a {name.replace('_', ' ')} film; companions it reads: {reads}."
            raise Problem(422, "unsupported-companion", detail, field=name)


def to_input(subject: Subject, about: Description) -> Prepared:
    """``subject`` as the model takes it, exactly as evaluation prepares it."""
    image = subject.image.image
    if about.data.input == "volume":
        volume, laid = prepare_volume(image, about.data)
        return Prepared(ModelInput(volume), laid)
    if about.data.input == "radiograph":
        film, geometry = prepare(image, about.data, about.resolution)
        return Prepared(ModelInput(film), geometry)
    companions = {name: one.image for name, one in subject.companions.items()}
    views = [image, *(companions.get(name) for name in COMPANIONS)]
    height, width = image.shape
    geometry = Geometry(height, width, about.data.geometry, about.data.crop)
    pixels, present = prepare_views(views, about.data, about.resolution)
    return Prepared(ModelInput(np.asarray(pixels), tuple(present)), geometry)
