"""Random changes to training images, drawn by (seed, epoch, image) alone.

A draw depends neither on the number of processes nor on what was read before, so a resumed run sees what the
uninterrupted one would have. Validation, evaluation and serving never come here.

Pillow transforms, as in ``preprocess``: no torch in Ray Data tasks.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from rayzero.config import DataConfig
from rayzero.reports.locations import names_a_side
from rayzero.studies.study import Study

Float = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Draw:
    """What one radiograph undergoes. Lengths are shares of the side, ``shift`` runs right and down, angles degrees."""

    corner: tuple[float, float]
    angle: float
    shift: tuple[float, float]
    scale: float
    shear: float
    brightness: float
    contrast: float


class Augmentation:
    """The draws of one epoch of a run."""

    def __init__(self, data: DataConfig, *, seed: int, epoch: int) -> None:
        self._data, self._settings = data, data.augmentation
        self._seed = (seed, epoch)

    def prepared_at(self, resolution: int) -> int:
        """The side that radiographs are to be prepared at for an input of ``resolution``."""
        return round(resolution / self._settings.crop)

    def __call__(self, study: Study, image_id: str, pixels: Float, present: list[bool], resolution: int) -> Float:
        """``pixels`` of an example, changed: (1, S, S) to (1, R, R), (V, 1, S, S) to (V, 1, R, R), or a volume.

        The images of a study flip together or not at all. Its frontal views, current and prior, share one draw, and
        so do its lateral ones (ALTA spec, section 1). Absent views stay zero.
        """
        flip = self._flips(study)
        if self._data.input == "volume":
            return np.ascontiguousarray(pixels[..., ::-1]) if flip else pixels
        if self._data.input == "radiograph":
            return self._changed(pixels, self._draw(image_id), flip, resolution)
        # In the order of examples.COMPANIONS: frontal, lateral, prior frontal, prior lateral.
        draws = [self._draw(image_id), self._draw(f"{image_id} lateral")] * 2
        out = np.zeros((len(pixels), 1, resolution, resolution), np.float32)
        for index, (view, there, draw) in enumerate(zip(pixels, present, draws, strict=True)):
            if there:
                out[index] = self._changed(view, draw, flip, resolution)
        return out

    def _flips(self, study: Study) -> bool:
        """By study: two examples of one study agree. Never where a text that may be drawn names a side."""
        wanted = self._rng(f"flip {study.study_id}").random() < self._settings.flip
        said = [text for sentence in study.sentences for text in (sentence.text, sentence.location)]
        if self._data.texts == "report":
            said.append(study.report.text)
        return wanted and not any(map(names_a_side, said))

    def _draw(self, name: str) -> Draw:
        settings, rng = self._settings, self._rng(name)
        reach = settings.translation
        # All of them always: a setting changes no other's draws.
        return Draw(
            corner=(rng.random(), rng.random()),
            angle=rng.uniform(-settings.rotation, settings.rotation),
            shift=(rng.uniform(-reach, reach), rng.uniform(-reach, reach)),
            scale=rng.uniform(*settings.scale),
            shear=rng.uniform(-settings.shear, settings.shear),
            brightness=rng.uniform(*settings.brightness),
            contrast=rng.uniform(*settings.contrast),
        )

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([*self._seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])])

    def _changed(self, image: Float, draw: Draw, flip: bool, resolution: int) -> Float:
        plane = crop(image[0], draw.corner, resolution)
        return jitter(affine(plane[:, ::-1] if flip else plane, draw), draw)[None]


def crop(plane: Float, corner: tuple[float, float], side: int) -> Float:
    """A square of ``side`` of ``plane`` (S, S); ``corner`` in [0, 1) places it among the whole pixels there are."""
    top, left = (int(share * (room - side + 1)) for share, room in zip(corner, plane.shape, strict=True))
    return plane[top : top + side, left : left + side]


def affine(plane: Float, draw: Draw) -> Float:
    """``plane`` (S, S) sheared along x, turned, scaled, about its centre, and shifted; bilinear, zero outside."""
    side = len(plane)
    angle, shear = math.radians(draw.angle), math.tan(math.radians(draw.shear))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = draw.scale * turn @ np.array([[1.0, shear], [0.0, 1.0]])
    shift = np.array(draw.shift) * side
    if np.array_equal(forward, np.eye(2)) and not shift.any():
        return plane
    # Pillow asks where each output point (x, y) comes from; pixel centres are at halves.
    back = np.linalg.inv(forward)
    centre = np.full(2, side / 2)
    origin = centre - back @ (centre + shift)
    source = PillowImage.fromarray(np.ascontiguousarray(plane, np.float32), mode="F")
    moved = source.transform(
        source.size,
        PillowImage.Transform.AFFINE,
        (*back[0], origin[0], *back[1], origin[1]),
        PillowImage.Resampling.BILINEAR,
    )
    return np.asarray(moved, dtype=np.float32)


def jitter(plane: Float, draw: Draw) -> Float:
    """Grey levels times ``brightness``, then spread about their mean by ``contrast``; each is kept in [0, 1]."""
    if draw.brightness != 1:
        plane = np.clip(plane * np.float32(draw.brightness), 0, 1)
    if draw.contrast != 1:
        mean = plane.mean(dtype=np.float64)
        plane = np.clip((plane - np.float32(mean)) * np.float32(draw.contrast) + np.float32(mean), 0, 1)
    return plane
