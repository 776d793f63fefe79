"""Names of the findings a phantom can carry, and the words that may not reach training text."""

from __future__ import annotations

import re

FINDINGS: tuple[str, ...] = (
    "cardiomegaly",
    "pleural effusion",
    "pneumothorax",
    "consolidation",
    "atelectasis",
    "pulmonary edema",
    "lung nodule",
    "lung mass",
    "emphysema",
    "rib fracture",
    "calcified granuloma",
    "hiatal hernia",
    "support device",
)
"""Every finding, in the column order of ``labels.csv``."""

NEVER_SEEN: frozenset[str] = frozenset({"lung mass", "calcified granuloma", "consolidation"})
"""Findings that occur in the test split only: a model meets them for the first time when it is evaluated."""

_NEVER_SEEN_WORDS: dict[str, str] = {
    "lung mass": r"\bmass(?:es|like)?\b|\bmass-like|neoplas|malignan|tumou?r|carcinoma|cancer",
    "calcified granuloma": r"granulom|calcif",
    "consolidation": r"consolidat|pneumonia|air bronchogram|infiltrat",
}

NEVER_SEEN_PATTERN: re.Pattern[str] = re.compile(
    "|".join(_NEVER_SEEN_WORDS[name] for name in sorted(NEVER_SEEN)), re.IGNORECASE
)
"""Matches the name or a synonym of any never-seen finding; training and validation text matches nowhere."""
