"""A section's text into sentences, and a sentence into clauses that each make their own statement."""

from __future__ import annotations

import re

from rayzero.reports import lexicon, locations

_SEEN, _MODIFIER = (lexicon.cues().fragments[name] for name in ("seen", "modifier"))
_SCRUB = re.compile(r"\bX{3,}\b|_{2,}|\[\*\*.*?\*\*\]|<br ?/?>", re.IGNORECASE)
# A full stop ends a sentence unless a digit follows ("1.5 cm") or it ends a list number or "Dr".
_STOP = re.compile(r"(?<!\bdr)(?<!\bvs)(?<!\b\d)\.(?!\d)|[!?;]|\n\s*\n|(?:^|\s)\d\.\s")
_CUT = re.compile(
    r",?\s*\b(?:but|however|although|though|except(?: for)?|aside from|apart from|other than|otherwise|while|whereas"
    r"|nevertheless|which)\b"
    # A comma before words with a verb of their own starts a statement; one inside a list does not.
    r"|(?P<comma>,)(?=\s(?!or\b|and\b|nor\b)[^,]*\b(?:is|are|remains?|has|have|there)\b)"
    r"|,?\s\band\b(?=\s(?:there|the|a|an|mild|small|moderate|large|stable|unchanged)\b)"
)
# "No edema, effusion or pneumothorax is seen" is one list, and so is "no acute, displaced fracture is seen".
_DENIED_LIST = re.compile(rf"[^,]*\bn?or\b[^,]*\b(?:is|are)(?: \w+)? {_SEEN}\b")
_DENIAL_OPEN = re.compile(r"\b(?:no|without)\b[^,]*(?:,[^,]*)*$")
_MODIFIERS_ONLY = re.compile(rf"\b(?:no|without)(?: {_MODIFIER})+$")
_LEADING_PLACE = re.compile(r"(?:in|at|within|on|over) (?:the )?(?:[\w-]+ ){1,4}?[\w-]+,(?= there )")


def split_statements(text: str) -> list[str]:
    """``text`` as lower-case sentences: scrub tokens removed, white space collapsed, lobes written out."""
    parts = _STOP.split(_SCRUB.sub(" ", text).lower().replace(":", " "))
    clean = (re.sub(r"\s+", " ", part).strip(" ,.-*") for part in parts)
    return [locations.expand(part) for part in clean if part]


def split_clauses(text: str) -> list[str]:
    """``text`` cut where one statement ends; a leading place ("in the left base, there is ...") stays attached."""
    leading = _LEADING_PLACE.match(text)
    matches = _CUT.finditer(text, leading.end() if leading else 0)
    cuts = [match.start() for match in matches if not (match["comma"] and _within_denial(text, match))]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _within_denial(text: str, comma: re.Match[str]) -> bool:
    """Whether a comma stands inside what one "no" denies."""
    before, after = text[: comma.start()], text[comma.end() :]
    if _MODIFIERS_ONLY.search(before):
        return True
    return bool(_DENIAL_OPEN.search(before) and _DENIED_LIST.match(after))
