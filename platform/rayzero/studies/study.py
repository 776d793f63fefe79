"""What a study is: one imaging examination of one patient, as one row of a Parquet lake.

The Arrow schema below is the contract between ingest, training, evaluation and serving. Rows are joined by
id, never by position. Bump ``SCHEMA_VERSION`` when a field changes meaning.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = "2"

View = Literal["frontal", "lateral", "other", "unknown", "volume"]
Status = Literal["present", "uncertain", "absent"]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Image:
    """One radiograph (H, W) or one volume (Z, Y, X), stored losslessly.

    ``pixels`` holds the little-endian C-order bytes of ``dtype``. Radiographs are stored with air dark and
    bone bright (MONOCHROME2 sense). A volume holds int16 Hounsfield units on axes of one orientation: Z rises to
    the head, Y to the back, X to the patient's left, the axes of DICOM patient coordinates (LPS), last axis first.
    ``spacing_mm`` follows ``shape``, axis by axis, and is empty when a radiograph gives none that can be trusted.
    """

    image_id: str
    view: View
    pixels: bytes = field(repr=False)
    dtype: Literal["uint8", "uint16", "int16"]
    shape: tuple[int, ...]
    bits: int
    spacing_mm: tuple[float, ...] = ()
    sha256: str = ""
    # Display window (centre, width) in stored values, or empty when the file gives none: black at centre - width/2,
    # white at centre + width/2. ``curve`` has display values in [0, 1] at equal steps over it; empty is a line.
    window: tuple[float, ...] = ()
    curve: tuple[float, ...] = field(default=(), repr=False)
    # The file's values were mirrored about the range of ``bits`` to show air dark.
    inverted: bool = False

    @classmethod
    def from_array(
        cls,
        image_id: str,
        array: np.ndarray[Any, Any],
        *,
        view: View,
        bits: int,
        spacing_mm: Sequence[float] = (),
        window: Sequence[float] = (),
        curve: Sequence[float] = (),
        inverted: bool = False,
    ) -> Image:
        """Wrap ``array`` (uint8, uint16 or int16); the checksum covers the pixel bytes alone."""
        if array.dtype.name not in ("uint8", "uint16", "int16"):
            raise ValueError(f"image {image_id}: pixels are {array.dtype}; store uint8, uint16 or int16")
        data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
        return cls(
            image_id=image_id,
            view=view,
            pixels=data,
            dtype=array.dtype.name,
            shape=tuple(int(n) for n in array.shape),
            bits=bits,
            spacing_mm=tuple(float(s) for s in spacing_mm),
            window=tuple(float(w) for w in window),
            curve=tuple(float(value) for value in curve),
            inverted=inverted,
            sha256=hashlib.sha256(data).hexdigest(),
        )

    def array(self) -> np.ndarray[Any, Any]:
        """The stored pixels as a read-only array of ``shape``."""
        return np.frombuffer(self.pixels, dtype=np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report's full text and the two sections that describe the current study."""

    text: str = ""
    findings: str = ""
    impression: str = ""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A minimal semantic sentence: one finding, its status, and where (RadZero, section 3.1)."""

    text: str
    status: Status
    finding: str
    location: str = ""


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A binary mask of ``size`` (H, W) or (Z, Y, X) as row-major run lengths that begin with the run of zeros."""

    size: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def from_array(cls, mask: np.ndarray[Any, Any]) -> Mask:
        """Encode an array of two or three axes; every non-zero element is foreground."""
        flat = np.concatenate([[0], (mask.reshape(-1) != 0).astype(np.int8), [0]])
        edges = np.flatnonzero(np.diff(flat))
        counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
        if len(counts) and counts[-1] == 0:
            counts = counts[:-1]
        return cls(size=tuple(int(n) for n in mask.shape), counts=tuple(int(c) for c in counts))

    def array(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Decode to a boolean array of ``size``. Raises ValueError when the runs do not fill the size."""
        values = np.arange(len(self.counts)) % 2 == 1
        # Summed before anything is expanded: a damaged record may claim any length.
        if sum(self.counts) != math.prod(self.size) or min(self.counts, default=0) < 0:
            size = "x".join(map(str, self.size))
            raise ValueError(f"mask runs cover {sum(self.counts)} elements of {size}; the record is damaged")
        return np.repeat(values, self.counts).reshape(self.size)


@dataclass(frozen=True, kw_only=True)
class Region:
    """Where a finding is on one image: a box (x0, y0, x1, y1 in pixels, x1 and y1 exclusive), a mask, or both.

    On a volume it is the mask (Z, Y, X) alone.
    """

    image_id: str
    finding: str
    phrase: str
    box: tuple[float, float, float, float] | None = None
    mask: Mask | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """One examination. ``labels`` maps a finding to 1 (present), 0 (absent) or -1 (uncertain)."""

    study_id: str
    patient_id: str
    corpus: str
    split: Split
    study_time: datetime | None = None
    prior_study_id: str | None = None
    images: tuple[Image, ...] = ()
    report: Report = field(default_factory=Report)
    sentences: tuple[Sentence, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()

    def image(self, view: View) -> Image | None:
        """The first image of ``view``, or None."""
        return next((image for image in self.images if image.view == view), None)

    @property
    def said(self) -> frozenset[str]:
        """The report as the set of its minimal sentences."""
        return frozenset(sentence.text for sentence in self.sentences if sentence.text.strip())


_IMAGE = pa.struct(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("view", pa.string(), nullable=False),
        pa.field("pixels", pa.large_binary(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int32()), nullable=False),
        pa.field("bits", pa.int16(), nullable=False),
        pa.field("spacing_mm", pa.list_(pa.float32())),
        pa.field("window", pa.list_(pa.float32())),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("curve", pa.list_(pa.float32())),
        pa.field("inverted", pa.bool_(), nullable=False),
    ]
)
_SENTENCE = pa.struct([(name, pa.string()) for name in ("text", "status", "finding", "location")])
_MASK = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.list_(pa.int32()))])
_REGION = pa.struct(
    [
        ("image_id", pa.string()),
        ("finding", pa.string()),
        ("phrase", pa.string()),
        ("box", pa.list_(pa.float32())),
        ("mask", _MASK),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("study_time", pa.timestamp("us")),
        pa.field("prior_study_id", pa.string()),
        pa.field("images", pa.list_(_IMAGE), nullable=False),
        pa.field("report", pa.struct([(n, pa.string()) for n in ("text", "findings", "impression")])),
        pa.field("sentences", pa.list_(_SENTENCE), nullable=False),
        pa.field("labels", pa.map_(pa.string(), pa.int8()), nullable=False),
        pa.field("regions", pa.list_(_REGION), nullable=False),
    ],
    metadata={"rayzero.schema_version": SCHEMA_VERSION},
)


def to_row(study: Study) -> dict[str, Any]:
    """``study`` as a plain dictionary that fits ``SCHEMA``."""
    row: dict[str, Any] = {name: getattr(study, name) for name in SCHEMA.names}
    row["images"] = [vars(image) for image in study.images]
    row["report"] = vars(study.report)
    row["sentences"] = [vars(sentence) for sentence in study.sentences]
    row["labels"] = list(study.labels.items())
    row["regions"] = [
        {**vars(region), "mask": None if region.mask is None else vars(region.mask)} for region in study.regions
    ]
    return row


def to_table(studies: Sequence[Study]) -> pa.Table:
    """``studies`` as one Arrow table of ``SCHEMA`` that shares the memory of their pixels.

    Arrow's own conversion copies large values several times over, which costs more than compressing them.
    """
    return pa.concat_tables([_one_row(study) for study in studies])


def _one_row(study: Study) -> pa.Table:
    row = to_row(study)
    row["images"] = [{**image, "pixels": b""} for image in row["images"]]
    table = pa.Table.from_pylist([row], schema=SCHEMA)
    if not study.images:
        return table
    images = table.column("images").chunk(0).flatten()
    pixels = [_shared(image.pixels) for image in study.images]
    # Only studies of several images are copied, once, into one buffer.
    column = pa.concat_arrays(pixels) if len(pixels) != 1 else pixels[0]
    fields = [column if field.name == "pixels" else images.field(field.name) for field in _IMAGE]
    filled = pa.ListArray.from_arrays(
        pa.array([0, len(pixels)], pa.int32()),
        pa.StructArray.from_arrays(fields, fields=list(_IMAGE)),
        type=SCHEMA.field("images").type,
    )
    return table.set_column(SCHEMA.get_field_index("images"), SCHEMA.field("images"), filled)


def _shared(data: bytes) -> pa.LargeBinaryArray:
    ends = pa.py_buffer(np.array([0, len(data)], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(data)])


def from_row(row: Mapping[str, Any]) -> Study:
    """The inverse of ``to_row``. Columns that were not read (projection) take their defaults."""
    values = {name: row[name] for name in SCHEMA.names if row.get(name) is not None}
    values["images"] = tuple(image_from_row(image) for image in values.get("images", ()))
    values["report"] = Report(**values.get("report", {}))
    values["sentences"] = tuple(Sentence(**sentence) for sentence in values.get("sentences", ()))
    values["labels"] = dict(values.get("labels", ()))
    values["regions"] = tuple(_region_from_row(region) for region in values.get("regions", ()))
    return Study(**values)


def image_from_row(row: Mapping[str, Any]) -> Image:
    """One element of a row's ``images`` as an ``Image``."""
    tuples = {name: tuple(row.get(name) or ()) for name in ("shape", "spacing_mm", "window", "curve")}
    return Image(**{**row, **tuples})


def _region_from_row(row: Mapping[str, Any]) -> Region:
    box = tuple(row["box"]) if row.get("box") is not None else None
    raw = row.get("mask")
    mask = Mask(size=tuple(raw["size"]), counts=tuple(raw["counts"])) if raw else None
    return Region(image_id=row["image_id"], finding=row["finding"], phrase=row["phrase"], box=box, mask=mask)  # type: ignore[arg-type]
