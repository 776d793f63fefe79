"""What a file is, by its first bytes and its name: told without the decoders, which only the reading processes load."""

from __future__ import annotations

from pathlib import PurePosixPath

from rayzero.studies.errors import StudyFileError

ZIP = b"PK\x03\x04"
GZIP = b"\x1f\x8b"
MAX_SLICES = 4096


def is_volume(data: bytes) -> bool:
    """Whether the bytes are of a kind that ``volumes.read_volume`` takes."""
    return data.startswith(ZIP) or is_nifti(data)


def is_nifti(data: bytes) -> bool:
    """Whether the bytes are a NIfTI file, or a gzip file, which among images is NIfTI alone."""
    return data.startswith(GZIP) or nifti_version(data) > 0


def nifti_version(head: bytes | bytearray) -> int:
    """1 or 2 for a single-file NIfTI header, else 0."""
    if head[344:348] == b"n+1\0":
        return 1
    return 2 if head[4:8] == b"n+2\0" else 0


def is_litter(path: str) -> bool:
    """Whether a file is what media, desktops and stores add to a series: an index, a hidden file, or one of no name."""
    parts = PurePosixPath(path).parts
    name = parts[-1].upper() if parts else "."
    return "__MACOSX" in parts or name.startswith(".") or name in ("DICOMDIR", "THUMBS.DB")


def check_count(count: int) -> None:
    """Refuse more files than a series has, and fewer than make a volume. Raises StudyFileError."""
    if not 2 <= count <= MAX_SLICES:
        raise StudyFileError("open", f"{count} DICOM files make no volume; give one series of 2 to {MAX_SLICES} slices")
