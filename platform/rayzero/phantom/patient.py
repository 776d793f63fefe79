"""Who the patient is and what each study of theirs shows: identity, build, and findings that evolve."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Literal

import numpy as np

from .vocabulary import FINDINGS, NEVER_SEEN

Split = Literal["train", "validation", "test"]
Severity = Literal["mild", "moderate", "severe"]
Change = Literal["none", "new", "unchanged", "improved", "worsened"]

SEVERITIES: tuple[Severity, ...] = ("mild", "moderate", "severe")

NORMAL_SHARE = 0.25
"""Share of patients who never have a finding."""

PREVALENCE: dict[str, float] = {
    "cardiomegaly": 0.21,
    "pleural effusion": 0.22,
    "pneumothorax": 0.14,
    "consolidation": 0.135,
    "atelectasis": 0.18,
    "pulmonary edema": 0.15,
    "lung nodule": 0.17,
    "lung mass": 0.135,
    "emphysema": 0.14,
    "rib fracture": 0.14,
    "calcified granuloma": 0.135,
    "hiatal hernia": 0.14,
    "support device": 0.20,
}
"""Share of studies (of the test split, for the never-seen) with each finding."""

_CLEARING: dict[str, float] = {
    "cardiomegaly": 0.04,
    "emphysema": 0.0,
    "calcified granuloma": 0.0,
    "hiatal hernia": 0.04,
    "lung mass": 0.05,
    "lung nodule": 0.1,
    "rib fracture": 0.1,
}
_ACUTE_CLEARING = 0.35

_ZONES = ("upper", "mid", "lower")
_SITES: dict[str, tuple[str, ...]] = {
    "pneumothorax": ("apical",),
    "pleural effusion": ("basal",),
    "consolidation": _ZONES,
    "atelectasis": ("lower", "lower", "mid"),
    "lung nodule": _ZONES,
    "lung mass": _ZONES,
    "calcified granuloma": _ZONES,
    "pulmonary edema": ("perihilar",),
    "hiatal hernia": ("retrocardiac",),
    "rib fracture": ("5", "6", "7", "8"),
}
_SIZES_MM: dict[str, tuple[float, float]] = {
    "lung nodule": (17, 30),
    "lung mass": (32, 60),
    "calcified granuloma": (10, 16),
    "hiatal hernia": (44, 72),
}
DEVICES = ("central venous catheter", "pacemaker", "endotracheal tube")


@dataclass(frozen=True)
class Finding:
    """One finding of one study.

    ``side`` is right, left, bilateral or midline; ``site`` a lung zone, a rib number or a place; ``size_mm`` a
    diameter where one is measured, else 0; ``variant`` the kind of device; ``seed`` fixes the shape, so that the
    same finding looks the same in the next study; ``change`` compares with the prior study.
    """

    name: str
    side: str
    site: str
    size_mm: float
    severity: Severity
    variant: str
    seed: int
    uncertain: bool = False
    change: Change = "none"

    @property
    def grade(self) -> int:
        """Severity as 0 (mild), 1 (moderate), 2 (severe)."""
        return SEVERITIES.index(self.severity)

    @property
    def sides(self) -> tuple[str, ...]:
        """The lungs concerned: both for a bilateral finding, none for one in the midline."""
        return {"bilateral": ("right", "left"), "midline": ()}.get(self.side, (self.side,))

    @property
    def ribs(self) -> tuple[int, ...]:
        """Numbers of the broken ribs: two neighbours unless the fracture is mild; none for another finding."""
        if self.name != "rib fracture":
            return ()
        first = int(self.site)
        return (first,) if self.grade == 0 else tuple(sorted((first, first + 1 if first < 8 else first - 1)))


@dataclass(frozen=True)
class Build:
    """A person's build, constant over their studies: scales about 1, thicknesses in mm, a seed for vessels."""

    width: float
    depth: float
    height: float
    fat_mm: float
    breast_mm: float
    heart: float
    spine_bend_mm: float
    seed: int


@dataclass(frozen=True)
class Pose:
    """How the patient stood for one study: rotation in radians, depth of inspiration in mm, noise and its seed."""

    turn: float
    inspiration_mm: float
    noise: float
    seed: int


@dataclass(frozen=True)
class Study:
    """One examination of a patient; ``prior`` is their previous study, ``resolved`` what it had and this has not."""

    study_id: str
    patient_id: str
    split: Split
    time: datetime
    build: Build
    pose: Pose
    age: int
    sex: str
    findings: tuple[Finding, ...]
    prior: Study | None = None
    resolved: tuple[Finding, ...] = ()
    seed: int = 0

    @property
    def labels(self) -> dict[str, int]:
        """1 present, 0 absent, -1 stated as uncertain, for every name in ``FINDINGS``."""
        stated = {f.name: -1 if f.uncertain else 1 for f in self.findings}
        return {name: stated.get(name, 0) for name in FINDINGS}


@dataclass(frozen=True)
class Patient:
    """One simulated person and their studies, oldest first."""

    patient_id: str
    name: str
    birthdate: date
    sex: str
    split: Split
    studies: tuple[Study, ...] = field(default=())


def sample_patient(seed: int, index: int, split: Split, *, prior_share: float = 0.35) -> Patient:
    """Draw patient ``index`` of the corpus ``seed``; depends on nothing else, so any order or process will do.

    ``prior_share`` of the patients have two studies. Findings in ``NEVER_SEEN`` are drawn for the test split only.
    """
    rng = np.random.default_rng([seed, index])
    sex = str(rng.choice(["F", "M"]))
    age = int(np.clip(rng.normal(61, 15), 22, 93))
    build = _sample_build(rng, sex)
    first = datetime(2019, 1, 1) + timedelta(minutes=int(rng.integers(0, 5 * 365 * 24 * 60)))
    times = [first]
    if rng.random() < prior_share:
        times.append(first + timedelta(minutes=int(rng.integers(18 * 60, 200 * 24 * 60))))
    prone = bool(rng.random() >= NORMAL_SHARE)
    patient_id = f"p{seed:04d}{index:07d}"
    studies: list[Study] = []
    findings = _first_findings(rng, split) if prone else ()
    for number, time in enumerate(times, start=1):
        prior = studies[-1] if studies else None
        if prior is not None and prone:
            findings = _evolve(prior.findings, rng, split)
        resolved = () if prior is None else _resolved(prior.findings, findings)
        pose = _sample_pose(rng)
        study = Study(f"{patient_id}s{number}", patient_id, split, time, build, pose, age, sex, findings)
        studies.append(replace(study, prior=prior, resolved=resolved, seed=int(rng.integers(2**31))))
    birthdate = (first - timedelta(days=int(age * 365.25 + rng.integers(0, 365)))).date()
    name = f"{rng.choice(_FAMILY_NAMES)}^{rng.choice(_GIVEN_NAMES[sex])}"
    return Patient(patient_id, name, birthdate, sex, split, tuple(studies))


def _sample_build(rng: np.random.Generator, sex: str) -> Build:
    small = 0.94 if sex == "F" else 1.02
    return Build(
        width=float(np.clip(rng.normal(small, 0.035), 0.86, 1.1)),
        depth=float(np.clip(rng.normal(small, 0.05), 0.84, 1.12)),
        height=float(np.clip(rng.normal(small, 0.035), 0.87, 1.08)),
        fat_mm=float(rng.gamma(3.0, 4.0) + 4),
        breast_mm=float(rng.uniform(14, 38)) if sex == "F" else 0.0,
        heart=float(np.clip(rng.normal(0.96, 0.045), 0.86, 1.05)),
        spine_bend_mm=float(rng.normal(0, 3)),
        seed=int(rng.integers(2**31)),
    )


def _sample_pose(rng: np.random.Generator) -> Pose:
    return Pose(
        turn=float(np.clip(rng.normal(0, 0.025), -0.07, 0.07)),
        inspiration_mm=float(np.clip(rng.normal(0, 6), -14, 10)),
        noise=float(rng.uniform(0.006, 0.016)),
        seed=int(rng.integers(2**31)),
    )


def _chance(name: str, split: Split) -> float:
    """Probability of the finding in a study of a patient who may have findings."""
    return 0.0 if name in NEVER_SEEN and split != "test" else PREVALENCE[name] / (1 - NORMAL_SHARE)


def _first_findings(rng: np.random.Generator, split: Split) -> tuple[Finding, ...]:
    names = [name for name in FINDINGS if rng.random() < _chance(name, split)]
    return _placed([sample_finding(name, rng) for name in names], rng)


def _evolve(before: tuple[Finding, ...], rng: np.random.Generator, split: Split) -> tuple[Finding, ...]:
    """The next study's findings: each clears or appears at rates that keep the prevalence the same over time."""
    had = {f.name: f for f in before}
    after: list[Finding] = []
    for name in FINDINGS:
        chance, clearing = _chance(name, split), _CLEARING.get(name, _ACUTE_CLEARING)
        clears, appears = rng.random() < clearing, rng.random() < clearing * chance / (1 - chance)
        if name in had and not clears:
            after.append(_progressed(had[name], rng))
        elif name not in had and appears:
            after.append(replace(sample_finding(name, rng), change="new"))
    return _placed(after, rng)


def _progressed(finding: Finding, rng: np.random.Generator) -> Finding:
    step = int(rng.choice([-1, 0, 1], p=[0.25, 0.5, 0.25]))
    if finding.name in {"support device", "calcified granuloma", "emphysema", "hiatal hernia", "rib fracture"}:
        step = 0
    grade = finding.grade + step
    if step == 0 or not 0 <= grade <= 2:
        return replace(finding, change="unchanged", uncertain=False)
    low, high = _SIZES_MM.get(finding.name, (0.0, 0.0))
    size = float(np.clip(finding.size_mm * (1 + 0.25 * step), low, high))
    if low and abs(size - finding.size_mm) < 2:
        return replace(finding, change="unchanged", uncertain=False)
    change: Change = "worsened" if step > 0 else "improved"
    return replace(finding, severity=SEVERITIES[grade], size_mm=size, change=change, uncertain=False)


def _resolved(before: tuple[Finding, ...], after: tuple[Finding, ...]) -> tuple[Finding, ...]:
    names = {f.name for f in after}
    return tuple(f for f in before if f.name not in names)


def sample_finding(name: str, rng: np.random.Generator) -> Finding:
    """Draw one finding of the kind ``name``: severity, size in mm, side, site and shape."""
    severity = SEVERITIES[int(rng.choice(3, p=[0.34, 0.4, 0.26]))]
    low, high = _SIZES_MM.get(name, (0.0, 0.0))
    third = SEVERITIES.index(severity) + float(rng.random())
    size = low + (high - low) * third / 3
    variant = str(rng.choice(DEVICES)) if name == "support device" else ""
    uncertain = severity == "mild" and name not in {"support device"} and rng.random() < 0.22
    site = str(rng.choice(_SITES.get(name, ("",))))
    return Finding(name, _side(name, variant, rng), site, size, severity, variant, int(rng.integers(2**31)), uncertain)


def _side(name: str, variant: str, rng: np.random.Generator) -> str:
    if name in {"cardiomegaly", "hiatal hernia"} or variant == "endotracheal tube":
        return "midline"
    if name in {"pulmonary edema", "emphysema"}:
        return "bilateral"
    if variant == "pacemaker":
        return "left"
    if name == "pleural effusion" and rng.random() < 0.3:
        return "bilateral"
    return str(rng.choice(["right", "left"]))


_FOCAL = ("lung mass", "consolidation", "lung nodule", "calcified granuloma", "atelectasis")


def _placed(findings: list[Finding], rng: np.random.Generator) -> tuple[Finding, ...]:
    """Move what would hide another finding: at most one focal lesion per zone, no air and fluid on one side."""
    effusion = next((f for f in findings if f.name == "pleural effusion"), None)
    taken = {(side, "lower") for side in (effusion.sides if effusion and effusion.grade else ())}
    placed: list[Finding] = []
    for finding in findings:
        if finding.name == "pneumothorax" and effusion is not None:
            if effusion.side == "bilateral":
                free = next(s for s in ("left", "right") if s != finding.side)
                placed = [replace(f, side=free) if f.name == "pleural effusion" else f for f in placed]
            elif finding.side == effusion.side and finding.change not in {"none", "new"}:
                placed = [replace(f, side=_other(finding.side)) if f is effusion else f for f in placed]
            elif finding.side == effusion.side:
                finding = replace(finding, side=_other(effusion.side))
        placed.append(finding)
    for name in _FOCAL:
        for k, finding in enumerate(placed):
            if finding.name != name:
                continue
            if (finding.side, finding.site) in taken and finding.change in {"none", "new"}:
                free_sites = [(s, z) for s in ("right", "left") for z in _SITES[name] if (s, z) not in taken]
                side, site = free_sites[int(rng.integers(len(free_sites)))] if free_sites else (finding.side, "mid")
                placed[k] = replace(finding, side=side, site=site)
            taken.add((placed[k].side, placed[k].site))
    return tuple(placed)


def _other(side: str) -> str:
    return "left" if side == "right" else "right"


_FAMILY_NAMES = ("ABERNATHY", "BLACKWOOD", "CASTELLANO", "DRUMMOND", "ELLINGTON", "FAIRWEATHER", "GALLOWAY", "HOLLIS")
_GIVEN_NAMES = {"F": ("AGNES", "BEATRIX", "CLARA", "DELIA", "EDITH"), "M": ("AMBROSE", "BARNABY", "CEDRIC", "DUNCAN")}
