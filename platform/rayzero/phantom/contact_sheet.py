"""A picture of one study per finding, with its region drawn below: ``python -m rayzero.phantom.contact_sheet``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .films import Film, render_films
from .patient import Finding, Study, sample_finding, sample_patient
from .solids import Bools
from .vocabulary import FINDINGS

_TILE, _COLUMNS, _CAPTION = 224, 7, 16
_LATERAL = ("cardiomegaly", "pleural effusion", "consolidation", "lung mass", "emphysema", "hiatal hernia")
_MASK_COLOUR, _BOX_COLOUR = (255, 170, 60), (90, 200, 255)


def example_study(name: str | None, seed: int) -> Study:
    """A study that shows the finding ``name`` alone, clearly; a normal one for None."""
    patient = sample_patient(seed, 0 if name is None else FINDINGS.index(name) + 1, "test")
    study = replace(patient.studies[0], findings=(), prior=None, resolved=())
    if name is None:
        return study
    finding: Finding = sample_finding(name, np.random.default_rng([seed, FINDINGS.index(name)]))
    return replace(study, findings=(replace(finding, severity="moderate", uncertain=False),))


def contact_sheet(path: Path | str, seed: int = 11, size: int = 512) -> None:
    """Save a grid of frontal films, one a finding, each above the same film with its masks and boxes (half-open).

    The last row holds lateral films. ``size`` is that of the rendered films in pixels.
    """
    tiles: list[tuple[str, Film]] = []
    laterals: list[tuple[str, Film]] = []
    for name in (None, *FINDINGS):
        films = render_films(example_study(name, seed), size)
        tiles.append((name or "normal", films.pa))
        if name is None or name in _LATERAL:
            laterals.append((f"{name or 'normal'}, lateral", films.lateral))
    tiles += laterals
    rows = -(-len(tiles) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE, rows * (2 * _TILE + _CAPTION)), "black")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, film) in enumerate(tiles):
        x, y = number % _COLUMNS * _TILE, number // _COLUMNS * (2 * _TILE + _CAPTION)
        sheet.paste(_tile(film, marked=False), (x, y + _CAPTION))
        sheet.paste(_tile(film, marked=True), (x, y + _CAPTION + _TILE))
        draw.text((x + 4, y + 2), caption, fill="white")
    palette = Image.new("P", (1, 1))
    greys = [(round(k * 255 / 47),) * 3 for k in range(48)]
    colours = [*greys, _MASK_COLOUR, _BOX_COLOUR]
    palette.putpalette([channel for colour in colours for channel in colour])
    sheet.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def _tile(film: Film, *, marked: bool) -> Image.Image:
    grey = np.rint(film.pixels * 255).astype(np.uint8)
    picture = np.repeat(grey[:, :, None], 3, axis=2)
    if marked:
        for region in film.regions:
            picture[_outline(region.mask)] = _MASK_COLOUR
    image = Image.fromarray(picture)
    if marked:
        draw = ImageDraw.Draw(image)
        for region in film.regions:
            x0, y0, x1, y1 = region.box
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=_BOX_COLOUR, width=2)
    return image.resize((_TILE, _TILE), Image.Resampling.LANCZOS)


def _outline(mask: Bools) -> Bools:
    return np.asarray(ndimage.binary_dilation(mask, iterations=2) & ~mask)


def main() -> None:
    """Write the picture; its default place is beside this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("contact_sheet.png"))
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    contact_sheet(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
