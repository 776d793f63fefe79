"""A corpus of radiographs for measurements: one simulated film, shifted and coded anew for each study."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from pydicom import uid

from rayzero.phantom import render_films, sample_patient
from tests.studies.films import dataset, encode

CODINGS = (
    (uid.ExplicitVRLittleEndian, 0.40),
    (uid.JPEGLosslessSV1, 0.15),
    (uid.JPEG2000Lossless, 0.15),
    (uid.JPEGLSLossless, 0.10),
    (uid.JPEGBaseline8Bit, 0.10),
    (uid.RLELossless, 0.10),
)
"""Transfer syntaxes and their shares: archives hold uncompressed films and all these codings."""

_REPORT = (
    "FINDINGS: The lungs are clear. There is a small left pleural effusion. No pneumothorax. IMPRESSION: Effusion."
)


def write_films(root: Path, *, count: int, side: int, seed: int = 0) -> list[Path]:
    """Write ``count`` distinct films of ``side`` x ``side`` pixels below ``root``, in ``CODINGS`` by their shares."""
    rng = np.random.default_rng(seed)
    unit = render_films(sample_patient(97, 0, "train").studies[0], 512).pa.pixels
    base = np.asarray(PillowImage.fromarray(unit.astype(np.float32), mode="F").resize((side, side)))
    syntaxes = [syntax for syntax, share in CODINGS for _ in range(round(share * count))]
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        syntax = syntaxes[number * 7919 % len(syntaxes)]
        bits = 8 if syntax == uid.JPEGBaseline8Bit else 12
        noisy = np.roll(base, rng.integers(0, side, 2), axis=(0, 1)) + rng.normal(0, 0.002, base.shape)
        values = np.rint(np.clip(noisy, 0, 1) * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
        inverted = number % 3 == 0
        film = dataset(
            2**bits - 1 - values if inverted else values,
            bits=bits,
            PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
            ViewPosition="PA",
            WindowCenter=2 ** (bits - 1),
            WindowWidth=2**bits,
            ImagerPixelSpacing=[0.2, 0.2],
        )
        path = root / f"{number:05d}.dcm"
        path.write_bytes(encode(film, syntax))
        paths.append(path)
    return paths


def write_table(root: Path, films: list[Path], *, studies: int) -> None:
    """A ``folder`` corpus of ``studies`` studies in ``root``, whose films are ``films`` in turn."""
    text = io.StringIO()
    text.write("study_id,patient_id,split,images,report\n")
    for number in range(studies):
        split = "test" if number % 5 == 4 else "train"
        film = films[number % len(films)].relative_to(root)
        text.write(f's{number},p{number},{split},{film},"{_REPORT}"\n')
    (root / "studies.csv").write_text(text.getvalue())
