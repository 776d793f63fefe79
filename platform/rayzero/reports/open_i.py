"""The 18 classes of the Open-I protocol, and the findings of the vocabulary that mean each.

The classes were derived from terms that an indexer assigned to what a report names and does not deny, so a finding
in doubt counts as positive. A class takes every finding whose name holds the class's word, as the protocol itself
matches substrings: an effusion may be pericardial, a calcified granuloma is a granuloma.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rayzero.studies.study import Sentence

OPEN_I: Mapping[str, frozenset[str]] = {
    "Atelectasis": frozenset({"atelectasis"}),
    "Cardiomegaly": frozenset({"cardiomegaly"}),
    "Effusion": frozenset({"pleural effusion", "pericardial effusion"}),
    "Infiltration": frozenset({"infiltrate"}),
    "Mass": frozenset({"lung mass", "mediastinal mass", "hilar mass"}),
    "Nodule": frozenset({"lung nodule", "calcified lung nodule"}),
    "Pneumonia": frozenset({"pneumonia"}),
    "Pneumothorax": frozenset({"pneumothorax"}),
    "Edema": frozenset({"pulmonary edema"}),
    "Emphysema": frozenset({"emphysema", "subcutaneous emphysema"}),
    "Fibrosis": frozenset({"fibrosis"}),
    "Pleural_Thickening": frozenset({"pleural thickening"}),
    "Hernia": frozenset({"hiatal hernia", "diaphragmatic hernia", "hernia"}),
    "Fracture": frozenset({"fracture", "rib fracture", "clavicle fracture", "vertebral compression fracture"}),
    "Opacity": frozenset({"lung opacity", "airspace opacity", "nodular opacity", "interstitial opacity"}),
    "Lesion": frozenset({"lung lesion", "bone lesion"}),
    "Calcified Granuloma": frozenset({"calcified granuloma"}),
    "Granuloma": frozenset({"calcified granuloma", "granuloma", "granulomatous disease"}),
}
"""Class -> findings, in the protocol's order."""


def open_i_labels(sentences: Iterable[Sentence]) -> frozenset[str]:
    """The classes of which ``sentences`` state or doubt a finding."""
    named = {sentence.finding for sentence in sentences if sentence.status != "absent"}
    return frozenset(name for name, findings in OPEN_I.items() if findings & named)
