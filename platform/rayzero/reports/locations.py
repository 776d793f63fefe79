"""Places in the chest that reports name, as short canonical phrases."""

from __future__ import annotations

import re

_SIDE = r"(?P<side>left|right|bilateral|both|bi)"
_REGIONS: tuple[tuple[str, str], ...] = (
    # A zone of the film is not a lobe: "lower lung" says less than "lower lobe".
    (r"upper lobes?", "upper lobe"),
    (r"middle lobes?", "middle lobe"),
    (r"lower lobes?", "lower lobe"),
    (r"upper (?:lungs?(?: zones?| fields?)?|zones?)", "upper lung"),
    (r"mid(?:dle)?(?:[ -]?lungs?(?: zones?| fields?)?| zones?)", "mid lung"),
    (r"lower (?:lungs?(?: zones?| fields?)?|zones?)", "lower lung"),
    (r"(?:lung |pulmonary )?(?:bases?|basal|basilar)", "lung base"),
    (r"(?:lung |pulmonary )?(?:apex|apices|apical)", "lung apex"),
    (r"(?:peri|para)hilar(?: region| area| lung)?", "perihilar region"),
    (r"infrahilar(?: region)?", "infrahilar region"),
    (r"suprahilar(?: region)?", "suprahilar region"),
    (r"hil(?:um|a|ar)(?: region)?", "hilum"),
    (r"lingula(?:r)?", "lingula"),
    (r"retrocardiac(?: region| space| area)?", "retrocardiac region"),
    (r"(?:lateral |posterior )?costophrenic (?:angles?|sulc(?:us|i)|recess(?:es)?)", "costophrenic angle"),
    (r"hemi-?thora(?:x|ces)", "hemithorax"),
    (r"lungs?(?: fields?)?", "lung"),
)
_PLURAL = {"lung apex": "lung apices", "hilum": "hila", "hemithorax": "hemithoraces"}
_REGION = "|".join(f"(?P<r{n}>{pattern})" for n, (pattern, _) in enumerate(_REGIONS))
_PLACE = re.compile(
    r"(?<![\w-])(?:"
    r"(?P<both>(?:left|right)(?:-sided)? (?:greater|larger|more|worse) than (?:the )?(?:left|right)|bilaterally"
    r"|(?:left|right) (?:and|or) (?:left|right)(?! [a-z]+ (?:lobe|lung|zone))|both sides)"
    rf"|(?:{_SIDE}(?:-sided| sided)?[ -]?(?:(?:medial|lateral|posterior|anterior) )?)?(?:{_REGION})"
    rf"|(?P<alone>left|right|bilateral|both)(?:-sided| sided| side)?)(?![\w])"
)
_ABBREVIATIONS = {
    "rul": "right upper lobe", "rml": "right middle lobe", "rll": "right lower lobe",
    "lul": "left upper lobe", "lll": "left lower lobe",
}  # fmt: skip
_ABBREVIATION = re.compile(rf"\b({'|'.join(_ABBREVIATIONS)})\b")
# Whatever mirroring an image would make untrue: sides, their abbreviations (not r/o, rule out), what one side alone
# has, and the Spanish of PadChest, whose reports are stemmed. Too much costs a flip, too little teaches a falsehood.
_ONE_SIDED = re.compile(
    rf"\b(?:left\w*|right\w*|[lr]t|l|r(?!/o\b)|{'|'.join(_ABBREVIATIONS)}"
    r"|lingul\w*|middle lobes?|(?:minor|horizontal) fissures?|azygos|(?:dextro|la?evo)\w*|situs inversus"
    r"|izq\w*|derech\w*|dch[oa]s?|ls[di]|li[di]|lm|lobul\w* medi[oa]?)\b",
    re.IGNORECASE,
)
# What may not stand between a place and the finding that it qualifies.
_BARRIER = re.compile(r"[,;]|\b(?:is|are|with|and|or|of|in|on|no|not|without|clear|normal|there|may|the)\b")
_PREPOSITION = re.compile(r"\b(?:in|of|at|on|within|involving|overlying|over|along|near|throughout|across)\b")


def expand(text: str) -> str:
    """Lower-case ``text`` with the abbreviations of the lobes written out."""
    return _ABBREVIATION.sub(lambda match: _ABBREVIATIONS[match[1]], text)


def before(text: str) -> str:
    """The place that qualifies a finding which follows ``text``, or ""."""
    places = list(_PLACE.finditer(text))
    if places:
        gap = text[places[-1].end() :]
        if len(gap.split()) <= 3 and not _BARRIER.search(gap):
            return _canonical(places[-1])
    if re.match(r"\s*(?:in|at|within|on|over)\b", text) and places:
        return _canonical(places[0])
    return ""


def after(text: str) -> str:
    """The place that qualifies a finding which ``text`` follows, or ""."""
    for place in _PLACE.finditer(text):
        lead = text[: place.start()]
        prepositions = list(_PREPOSITION.finditer(lead))
        near = bool(prepositions) and len(lead[prepositions[-1].end() :].split()) <= 3
        if near or place["both"]:
            return _canonical(place)
    return ""


def within(text: str) -> str:
    """The first place that ``text`` itself names, or ""."""
    place = _PLACE.search(text)
    return _canonical(place) if place else ""


def names_a_side(text: str) -> bool:
    """Whether ``text`` tells left from right in the body; "bilateral" and "both lungs" do not."""
    return _ONE_SIDED.search(text) is not None


def phrase(location: str) -> str:
    """``location`` as the tail of a sentence, such as `` in the right lower lobe``."""
    if not location:
        return ""
    if location in ("left", "right"):
        return f" on the {location}"
    if location == "bilateral":
        return " on both sides"
    return f" in {location}" if location.startswith("both ") else f" in the {location}"


def _canonical(place: re.Match[str]) -> str:
    side = place["side"] or place["alone"] or ("both" if place["both"] else "")
    side = "both" if side in ("bilateral", "bi") else side
    region = next((name for n, (_, name) in enumerate(_REGIONS) if place[f"r{n}"]), "")
    if not region:
        return "bilateral" if side == "both" else side
    if region == "lung" and not side:
        return ""
    if side == "both":
        return f"both {_PLURAL.get(region, region + 's')}"
    return f"{side} {region}".strip()
