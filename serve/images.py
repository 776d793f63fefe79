"""Images that clients sent: read once, kept for a while, and referred to by the hash of their file."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image as PillowImage

from rayzero.studies import sandbox
from rayzero.studies.errors import StudyFileError
from rayzero.studies.kinds import is_volume
from rayzero.studies.preprocess import display_window, to_unit
from rayzero.studies.study import Image
from serve.cache import LruCache
from serve.problems import Problem
from serve.settings import Limits

Float = np.ndarray[Any, np.dtype[np.float32]]
Kind = Literal["radiograph", "volume"]
Window = Literal["lung", "mediastinum", "bone"]
Plane = Literal["axial", "coronal", "sagittal"]

# Hounsfield units from black to white.
_WINDOWS: dict[Window, tuple[float, float]] = {
    "lung": (-1350.0, 150.0),
    "mediastinum": (-160.0, 240.0),
    "bone": (-500.0, 1300.0),
}
# The axis of (z, y, x) across which a plane's slices are counted.
_ACROSS: dict[Plane, int] = {"axial": 0, "coronal": 1, "sagittal": 2}
_ACCEPTED: dict[Kind, str] = {
    "radiograph": "This model reads radiographs: one DICOM, PNG or JPEG file of one film, not a volume or an archive.",
    "volume": "This model reads chest CT: a NIfTI volume or a zip of one DICOM series, not a single film.",
}


@dataclass(frozen=True)
class Grey:
    """A film's range of stored values, air dark, and the window (``level`` and ``width``) in which it is shown."""

    lowest: int
    highest: int
    level: float
    width: float

    @classmethod
    def of(cls, image: Image) -> Grey:
        """Those of a film."""
        pixels = image.array()
        return cls(int(pixels.min()), int(pixels.max()), *display_window(image))


@dataclass(frozen=True)
class StoredImage:
    """A decoded radiograph or volume and the id by which later requests may refer to it; ``grey`` is a film's."""

    image_id: str
    image: Image
    grey: Grey | None = None

    @property
    def kind(self) -> Kind:
        """What it is."""
        return "volume" if len(self.image.shape) == 3 else "radiograph"

    @property
    def height(self) -> int:
        """Rows, of a volume those of an axial slice."""
        return self.image.shape[-2]

    @property
    def width(self) -> int:
        """Columns, of a volume those of an axial slice."""
        return self.image.shape[-1]


def image_id_of(data: bytes) -> str:
    """The id of the image in a file: nobody who lacks the file can guess it."""
    return "img-" + hashlib.sha256(data).hexdigest()[:32]


def kind_of(data: bytes) -> Kind:
    """What a file holds, by its first bytes."""
    return "volume" if is_volume(data) else "radiograph"


def check_kind(found: Kind, wanted: Kind, field: str) -> None:
    """Raises Problem (415) for a film where a volume is read, or the other way round."""
    if found != wanted:
        raise Problem(415, "unsupported-image", _ACCEPTED[wanted], field=field)


class ImageStore:
    """The images that this process read lately. Its methods work on pixels: call them off the event loop."""

    def __init__(self, limits: Limits, reader: sandbox.Sandbox | None = None) -> None:
        self._limits = limits
        self._images: LruCache[StoredImage] = LruCache(limits.image_cache_bytes, lambda kept: len(kept.image.pixels))
        self._pictures: LruCache[bytes] = LruCache(limits.image_cache_bytes // 8, len)
        self._sandbox = reader or sandbox.Sandbox(
            workers=limits.readers,
            limits=sandbox.Limits(
                file_bytes=max(limits.file_bytes, limits.volume_bytes),
                memory_bytes=limits.reader_memory_bytes,
                cpu_seconds=limits.reader_seconds,
                # Whoever sent the file does not wait longer.
                wall_seconds=limits.request_seconds - limits.reader_wait_seconds,
            ),
        )

    def start(self) -> None:
        """Start a reading process, which takes a second that the first request would wait for."""
        file = io.BytesIO()
        PillowImage.new("L", (8, 8)).save(file, "PNG")
        self._sandbox.read_image(file.getvalue())

    def close(self) -> None:
        """End the reading processes."""
        self._sandbox.close()

    def get(self, image_id: str) -> StoredImage | None:
        """The image, or None when it was never here or was dropped for newer ones."""
        return self._images.get(image_id)

    def add(self, image_id: str, image: Image) -> StoredImage:
        """Keep the ``image`` that was read of a file with that id."""
        grey = None
        if len(image.shape) == 2:
            grey = Grey.of(image)
            # Of a film without a window it takes a while to find one: not again when it is prepared and shown.
            image = replace(image, window=(grey.level, grey.width))
        stored = StoredImage(image_id, image, grey)
        self._images.put(image_id, stored)
        return stored

    def headers(self, data: bytes) -> list[dict[str, Any]]:
        """The DICOM headers of a film or a zipped series, as DICOM JSON. Raises Problem (422)."""
        try:
            return self._sandbox.read_headers(data)
        except StudyFileError as error:
            raise _unreadable(error, "file") from None

    def preview(self, stored: StoredImage, window: tuple[float, float] | None = None) -> bytes:
        """A radiograph, or a volume's middle slice, as an 8-bit greyscale PNG, its longest side within the limit.

        ``window`` is a level and a width in a radiograph's stored values, in place of the file's own window and curve.
        Raises Problem (422) for one of a volume.
        """
        if stored.kind == "volume":
            if window is not None:
                detail = "level and width are of films; the slices of a volume take window=lung, mediastinum or bone."
                raise Problem(422, "invalid-request", detail, field="level")
            return self.section(stored, stored.image.shape[0] // 2, "lung")
        if window is None:
            return self._picture(stored.image_id, lambda: to_unit(stored.image, "voi"))
        # Not kept: while a reader turns a window, each picture of it is asked for once.
        return self._png(to_unit(replace(stored.image, window=window, curve=()), "voi"))

    def section(self, stored: StoredImage, index: int, window: Window, plane: Plane = "axial") -> bytes:
        """Slice ``index`` of a volume in ``window`` as an 8-bit greyscale PNG, one pixel a voxel up to the limit.

        Coronal and sagittal slices have the head at the top. Raises Problem (404).
        """
        axis = _ACROSS[plane]
        if stored.kind != "volume" or not 0 <= index < stored.image.shape[axis]:
            raise Problem(404, "not-found", "The image has no such slice.", field="z")
        low, high = _WINDOWS[window]

        def unit() -> Float:
            cut = np.take(stored.image.array(), index, axis).astype(np.float32)
            shown: Float = np.clip((cut - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
            return shown if plane == "axial" else shown[::-1]

        return self._picture(f"{stored.image_id}/{plane}/{index}/{window}", unit)

    def _picture(self, key: str, unit: Callable[[], Float]) -> bytes:
        known = self._pictures.get(key)
        if known is not None:
            return known
        picture = self._png(unit())
        self._pictures.put(key, picture)
        return picture

    def _png(self, unit: Float) -> bytes:
        picture = PillowImage.fromarray(np.round(unit * 255).astype(np.uint8))
        side = self._limits.preview_side
        picture.thumbnail((side, side), PillowImage.Resampling.BOX)
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=3)
        return file.getvalue()

    def read(self, data: bytes, *, field: str = "file") -> Image:
        """The image in a file. Raises Problem (4xx) that says what is wrong with it."""
        kind = kind_of(data)
        self._check_bytes(data, kind, field)
        try:
            # A stranger's bytes go through native decoders, so they are read in a confined process.
            image = self._sandbox.read_volume(data) if kind == "volume" else self._sandbox.read_image(data)
        except StudyFileError as error:
            raise _unreadable(error, field) from None
        if kind == "volume" and image.shape[0] > self._limits.slices:
            detail = f"The volume has {image.shape[0]} slices; at most {self._limits.slices} are read."
            raise Problem(413, "too-many-slices", detail, field=field)
        if image.shape[-2] * image.shape[-1] > self._limits.pixels:
            detail = (
                f"The image has {image.shape[-1]} x {image.shape[-2]} pixels; at most {self._limits.pixels} are read."
            )
            raise Problem(413, "image-too-large", detail, field=field)
        return image

    def _check_bytes(self, data: bytes, kind: Kind, field: str) -> None:
        if not data:
            raise Problem(422, "empty-file", "The file holds no bytes; send it again.", field=field)
        most = self._limits.volume_bytes if kind == "volume" else self._limits.file_bytes
        if len(data) > most:
            detail = f"The file has {len(data)} bytes; at most {most} are read of a {kind}."
            raise Problem(413, "file-too-large", detail, field=field)


def _unreadable(error: StudyFileError, field: str) -> Problem:
    return Problem(422, "unreadable-file", f"Reading stopped at {error.stage}: {error.reason}", field=field)
