"""A simulated chest: one anatomy per patient seen as CT, as two radiographs and in a report, with ground truth."""

from .files import StudyRecord, finish_corpus, write_corpus, write_patient
from .films import Film, Films, Region, render_films
from .patient import Finding, Patient, Study, sample_patient
from .report import region_phrase, write_report
from .vocabulary import FINDINGS, NEVER_SEEN, NEVER_SEEN_PATTERN
from .volume import CtVolume, render_ct

__all__ = [
    "FINDINGS",
    "NEVER_SEEN",
    "NEVER_SEEN_PATTERN",
    "CtVolume",
    "Film",
    "Films",
    "Finding",
    "Patient",
    "Region",
    "Study",
    "StudyRecord",
    "finish_corpus",
    "region_phrase",
    "render_ct",
    "render_films",
    "sample_patient",
    "write_corpus",
    "write_patient",
    "write_report",
]
