"""Volumes from file to network input: ``python -m tests.benchmarks.volumes [--out FILE] [--slices N]``.

Each line does one thing twice in this process, with RayZero and with the usual tools (nibabel, pydicom,
scipy.ndimage), on a simulated chest enlarged to a clinical matrix. Seconds are of the processor.
"""

from __future__ import annotations

import argparse
import gzip
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from scipy import ndimage

from rayzero.config import DataConfig
from rayzero.phantom import render_ct, sample_patient
from rayzero.studies.study import Image
from rayzero.studies.volume_preprocess import prepare_volume
from rayzero.studies.volumes import read_volume
from tests.benchmarks.harness import Row, report
from tests.studies.scans import nifti_bytes, series, zipped

Array = np.ndarray[Any, Any]


def measure(slices: int, side: int = 512) -> list[Row]:
    """One row per figure. A series may take twice as long as with bare pydicom: every header is checked."""
    hu = _chest(slices, side)
    affine = np.diag([-0.7, -0.7, 1.0, 1.0])
    packed = nifti_bytes(hu, affine)
    files = series(hu)
    archive = zipped(files)
    image = Image.from_array("v", hu, view="volume", bits=16, spacing_mm=(1.0, 0.7, 0.7))
    data = DataConfig()
    _, geometry = prepare_volume(image, data)
    small = np.random.default_rng(0).random((16, 16, 16), dtype=np.float32)
    return [
        _row("read .nii.gz to int16 HU, s", lambda: read_volume(packed), lambda: _nibabel(packed), 1.0),
        _row("read a zipped DICOM series, s", lambda: read_volume(archive), lambda: _pydicom(files), 2.0),
        _row("prepare for the brgsa preset, s", lambda: prepare_volume(image, data), lambda: _ndimage(hu), 0.5),
        _row("restore a 16x16x16 map, s", lambda: geometry.restore(small), lambda: _zoom(small, hu.shape), 1.0),
    ]


def _chest(slices: int, side: int) -> Array:
    coarse = render_ct(sample_patient(97, 0, "test").studies[0], 4.0).hu
    factors = [n / m for n, m in zip((slices, side, side), coarse.shape, strict=True)]
    fine = ndimage.zoom(coarse.astype(np.float32), factors, order=1)
    noise = np.random.default_rng(0).normal(0, 15, fine.shape)
    return np.clip(np.rint(fine + noise), -1024, 3071).astype(np.int16)


def _nibabel(packed: bytes) -> Array:
    image: Any = nibabel.Nifti1Image.from_bytes(gzip.decompress(packed))
    canonical: Any = nibabel.as_closest_canonical(image)
    return np.rint(canonical.get_fdata()).astype(np.int16)


def _pydicom(files: dict[str, bytes]) -> Array:
    slices = sorted(
        (pydicom.dcmread(io.BytesIO(data)) for data in files.values()), key=lambda ds: float(ds.ImagePositionPatient[2])
    )
    return np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in slices])


def _ndimage(hu: Array) -> Array:
    """Low-pass and linear interpolation of the whole volume, then the crop: what a general resampler does."""
    ratios = (3.0 / 1.0, 1.5 / 0.7, 1.5 / 0.7)
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), [max(0.0, (r - 1) / 2) for r in ratios])
    return ndimage.zoom(smooth, [1 / r for r in ratios], order=1)


def _zoom(grid: Array, shape: tuple[int, ...]) -> Array:
    return ndimage.zoom(grid, [n / m for n, m in zip(shape, grid.shape, strict=True)], order=1)


def _row(figure: str, ours: Callable[[], object], other: Callable[[], object], bar: float) -> Row:
    seconds = []
    for work in (ours, other):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return Row(figure, seconds[0], seconds[1], bar)


def main() -> None:
    """Print the table and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--slices", type=int, default=300)
    arguments = parser.parse_args()
    report("volumes", measure(arguments.slices), arguments.out, note="processor seconds, 512 x 512 slices")


if __name__ == "__main__":
    main()
