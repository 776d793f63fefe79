"""Free-text reports in the manner of real ones, written from a study's findings."""

from __future__ import annotations

import numpy as np

from . import phrases
from .patient import Finding, Study
from .vocabulary import FINDINGS, NEVER_SEEN

_IN_LUNG = {"consolidation", "atelectasis", "pulmonary edema", "lung nodule", "lung mass", "calcified granuloma"}


def write_report(study: Study, rng: np.random.Generator | None = None) -> str:
    """The report of one study with sections EXAMINATION, INDICATION, COMPARISON, FINDINGS and IMPRESSION.

    ``rng`` chooses the wording; by default it follows from the study, so that the text is reproducible.
    """
    rng = np.random.default_rng([study.seed, 1]) if rng is None else rng
    positive = [_statement(finding, study, rng) for finding in study.findings]
    lines = positive + _negatives(study, rng)
    for finding in study.resolved:
        # A finding that is gone but for wording would put its name in the text of a study labelled 0: as in real ones.
        lines.append(_pick(phrases.RESOLVED, rng).format(phrase=_noun(finding, rng)))
    order = rng.permutation(len(lines))
    findings = [lines[k] for k in order] if rng.random() < 0.6 else lines
    sections = {
        "EXAMINATION": str(rng.choice(["Chest, PA and lateral", "CHEST (PA AND LAT)", "Chest radiograph, two views"])),
        "INDICATION": _indication(study, rng),
        "COMPARISON": _comparison(study, rng),
        "FINDINGS": " ".join(findings),
        "IMPRESSION": _impression(study, rng),
    }
    return "\n\n".join(f"{title}: {text}" for title, text in sections.items()) + "\n"


def region_phrase(study: Study, finding: Finding) -> str:
    """A short sentence that names one finding of a study, such as "There is a right pleural effusion."."""
    rng = np.random.default_rng([finding.seed, study.seed])
    noun = _noun(finding, rng)
    if noun.split()[0] in _MASS_NOUNS or noun.split()[-1] in _MASS_NOUNS or finding.side == "bilateral":
        return f"There is {noun}." if finding.name != "pleural effusion" else f"There are {noun}s."
    return f"There is {_article(noun)} {noun}."


_MASS_NOUNS = {"cardiomegaly", "atelectasis", "emphysema", "edema", "consolidation", "pulmonary"}


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _key(finding: Finding) -> str:
    return "rib fractures" if len(finding.ribs) > 1 else finding.variant or finding.name


def _fill(template: str, finding: Finding, rng: np.random.Generator, phrase: str = "") -> str:
    volume = phrases.VOLUME[finding.severity]
    zone = phrases.ZONE.get(finding.site, finding.site)
    if rng.random() < 0.5:
        zone = phrases.LOBE.get((finding.side, finding.site), zone)
    words = {
        "side": finding.side,
        "zone": zone,
        "size": f"{finding.size_mm:.0f}",
        "size_cm": f"{finding.size_mm / 10:.1f}",
        "degree": finding.severity,
        "volume": volume,
        "rib": " and ".join(phrases.ORDINAL[rib] for rib in finding.ribs),
        "phrase": phrase,
    }
    return template.format(**words, **{name.capitalize(): word[:1].upper() + word[1:] for name, word in words.items()})


def _noun(finding: Finding, rng: np.random.Generator) -> str:
    return _fill(_pick(phrases.PHRASE[_key(finding)], rng), finding, rng)


def _statement(finding: Finding, study: Study, rng: np.random.Generator) -> str:
    if finding.uncertain:
        return _fill(_pick(phrases.UNCERTAIN, rng), finding, rng, _noun(finding, rng))
    key = "bilateral effusion" if finding.name == "pleural effusion" and finding.side == "bilateral" else _key(finding)
    text = _fill(_pick(phrases.PRESENT[key], rng), finding, rng)
    if study.prior is not None and finding.change in phrases.CHANGED and rng.random() < 0.8:
        text += " " + _pick(phrases.CHANGED[finding.change], rng).format(phrase=_noun(finding, rng))
    return text


def _negatives(study: Study, rng: np.random.Generator) -> list[str]:
    """Normal statements about what is absent; those on never-seen findings only in the test split."""
    gone = {f.name for f in study.resolved}
    absent = [n for n in FINDINGS if study.labels[n] == 0 and n not in gone]
    if study.split != "test":
        absent = [n for n in absent if n not in NEVER_SEEN]
    lines: list[str] = []
    if {"pneumothorax", "pleural effusion"} <= set(absent) and rng.random() < 0.6:
        lines.append(_pick(phrases.JOINT_ABSENT, rng))
        absent = [n for n in absent if n not in {"pneumothorax", "pleural effusion"}]
    lungs_clear = not any(study.labels[n] for n in _IN_LUNG)
    if lungs_clear and rng.random() < 0.7:
        lines.append(_pick(phrases.CLEAR, rng))
    usual = {"cardiomegaly": 0.75, "pneumothorax": 0.75, "pleural effusion": 0.75, "rib fracture": 0.5}
    usual |= {"consolidation": 0.45, "pulmonary edema": 0.35, "support device": 0.1, "calcified granuloma": 0.05}
    lines += [_pick(phrases.ABSENT[n], rng) for n in absent if rng.random() < usual.get(n, 0.15)]
    lines += [_pick(phrases.BACKGROUND, rng)] if rng.random() < 0.7 else []
    return lines


def _indication(study: Study, rng: np.random.Generator) -> str:
    person = "woman" if study.sex == "F" else "man"
    return _pick(phrases.INDICATION, rng).format(age=study.age, person=person)


def _comparison(study: Study, rng: np.random.Generator) -> str:
    if study.prior is None:
        return _pick(("None.", "None available.", "No prior studies for comparison."), rng)
    day = f"{study.prior.time:%Y-%m-%d}" if rng.random() < 0.6 else "XXXX"
    return f"Chest radiograph from {day}."


def _impression(study: Study, rng: np.random.Generator) -> str:
    if not study.findings:
        return _pick(phrases.NORMAL_IMPRESSION, rng)
    lines: list[str] = []
    for finding in study.findings:
        noun = _noun(finding, rng)
        if finding.uncertain:
            noun = _pick(("possible {}", "questionable {}", "suspected {}"), rng).format(noun)
        elif study.prior is not None and finding.change in {"new", "unchanged", "improved", "worsened"}:
            noun = f"{_CHANGE_WORD[finding.change]} {noun}"
        elif finding.name != "support device" and rng.random() < 0.4:
            noun = f"{finding.severity} {noun}"
        lines.append(noun[0].upper() + noun[1:] + ".")
    if len(lines) == 1:
        return lines[0]
    return " ".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


_CHANGE_WORD = {"new": "new", "unchanged": "unchanged", "improved": "decreased", "worsened": "increased"}
