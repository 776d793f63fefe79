"""Report text -> minimal semantic sentences: one finding, its status, and where (RadZero, section 3.1).

The rules are a small NegEx: cues open a scope that words such as "but" close. Sentences are built from canonical
names, so that equal statements are equal strings, and they speak of the current film alone: words of comparison
("new", "unchanged") never reach them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rayzero.reports import locations
from rayzero.reports.normal import normal_statements
from rayzero.reports.vocabulary import Mention, find_mentions
from rayzero.studies.study import Report, Sentence, Status

_SCRUB = re.compile(r"\bX{3,}\b|_{2,}|\[\*\*.*?\*\*\]")
# A full stop ends a sentence unless a digit follows ("1.5 cm") or it ends a list number or "Dr".
_STOP = re.compile(r"(?<!\bdr)(?<!\bvs)(?<!\b\d)\.(?!\d)|[!?;]|\n\s*\n|(?:^|\s)\d\.\s")
_CLAUSE = re.compile(
    r",?\s*\b(?:but|however|although|though|except(?: for)?|aside from|apart from|other than|otherwise|while|whereas"
    r"|nevertheless|which)\b"
    # A comma before words with a verb of their own starts a statement; one inside a list does not.
    r"|,(?=\s(?!or\b|and\b|nor\b)[^,]*\b(?:is|are|remains?|has|have|there)\b)"
    r"|,?\s\band\b(?=\s(?:there|the|a|an|mild|small|moderate|large|stable|unchanged)\b)"
)
_LEADING_PLACE = re.compile(r"(?:in|at|within|on|over) (?:the )?(?:[\w-]+ ){1,4}?[\w-]+,(?= there )")
_STATUS_CUES: tuple[tuple[str, str], ...] = (
    ("ignore", r"history of|(?:to )?(?:evaluate|assess|check|look) for|evaluation (?:of|for)|rule out|r/o|if there is"
               r"|clinical concern for|recommend\w*|correlat\w+|follow-?up|risk of|symptoms of|treated for"
               r"|prior to|previously (?:seen|noted|described|identified)"),
    ("none", r"(?:no|without)(?: \w+){0,2} (?:change|changes|increase|decrease|worsening|progression|improvement)"
             r"(?: (?:in|of|to))?|not significantly changed|no longer|not only"),
    ("uncertain", r"(?:cannot|can not|can't|could not|not)(?: \w+){0,2} (?:exclude|excluded|rule out|ruled out)"
                  r"|difficult to exclude|no definite evidence to exclude"),
    ("absent", r"no|not|without|negative for|free of|clear of|absence of|absent|denies|resolution of|removal of"
               r"|resolved|neither|nor|never|lack of|lacks|rather than"),
    ("uncertain", r"may|might|could|can|possible|possibly|possibility of|probable|probably|likely|suspected"
                  r"|suspicious for|suspicion of|concerning for|concern for|worrisome for|suggest\w*|questionable"
                  r"|question of|question|questioned|equivocal|potential(?:ly)?|perhaps|presumed|presumably"
                  r"|borderline|favou?red|differential|versus|vs|consider"),
)  # fmt: skip
_CUE = re.compile("|".join(rf"(?P<c{n}>\b(?:{pattern})(?![\w-]))" for n, (_, pattern) in enumerate(_STATUS_CUES)))
# Where the scope of a negation ends although the clause goes on.
_SCOPE_END = re.compile(
    r"\b(?:there (?:is|are)|seen|identified|noted|present|evident|visuali[sz]ed|appreciated|detected|demonstrated"
    r"|due to|secondary to|because|consistent with|compatible with|likely|probably|possibly|represent\w*|is|are)\b"
)
_POST_ABSENT = re.compile(
    r"^[^,;]*?\b(?:(?:is|are|was|were|has|have) (?:not|no longer|never)(?! (?:excluded|ruled out|changed|significantly"
    r"|entirely|completely|increased|decreased))|not (?:seen|identified|present|visuali[sz]ed|evident|appreciated"
    r"|demonstrated|noted|definitely)|(?:is|are) absent|(?:has|have)(?: \w+)? (?:resolved|cleared)|no longer"
    r"|(?:is|are) unlikely|unlikely|resolved|(?:has|have) been removed|(?:is|are|has been) (?:excluded|ruled out))\b"
)
_POST_UNCERTAIN = re.compile(
    r"^[^,;]*?\b(?:(?:is|are) (?:possible|likely|probable|suspected|questioned|questionable"
    r"|not (?:entirely |completely )?(?:excluded|ruled out))|(?:cannot|can not|could not"
    r"|not)(?: \w+){0,2} (?:excluded|ruled out)"
    r"|(?:may|might|could) (?:be present|also be|be considered)|not excluded)\b"
)
_ALTERNATIVE = re.compile(r"^(?:,? or|,? versus|,? vs\.?|\s*/)(?: \w+){0,2} ?$")
_LIST = re.compile(r"^(?:,|,? and| and/or|,? or|\s*/|,? nor)(?: \w+){0,2} ?$")
_OTHER_ORGAN = re.compile(r"\b(?:bones?|bony|osseous|skelet\w+|ribs?|spine|vertebra\w*|abdom\w+|soft tissues?)\b")
_EXPLAINS = re.compile(
    r"\b(?:represent\w*|consistent with|compatible with|suggest\w*|reflect\w*|likely|concerning for)\b"
)
# A phrase with a verb of its own, such as "the heart is not enlarged": cues before it do not reach inside.
_OWN_STATEMENT = re.compile(r"\b(?:is|are|appears?|remains?)\b(?!.*\b(?:of|in|involving)\b)")
_SHAPES: dict[Status, str] = {
    "present": "There is {}{}",
    "uncertain": "There may be {}{}",
    "absent": "There is no {}{}",
}


@dataclass(frozen=True)
class _Statement:
    mention: Mention
    status: Status | None
    location: str


def extract_sentences(report: Report) -> tuple[Sentence, ...]:
    """The minimal sentences of the findings, then of the impression, each once.

    A finding that the report states somewhere is not also denied: "no effusion" beside "small left effusion" is
    dropped unless the denial names another place.
    """
    found: dict[str, Sentence] = {}
    for section in (report.findings, report.impression):
        for text in split_statements(section):
            for sentence in _read(text):
                found.setdefault(sentence.text, sentence)
    stated = {(s.finding, s.location) for s in found.values() if s.status != "absent"}
    findings = {finding for finding, _ in stated}
    return tuple(
        s
        for s in found.values()
        if s.status != "absent" or not (s.finding in findings and (not s.location or (s.finding, s.location) in stated))
    )


def split_statements(text: str) -> list[str]:
    """``text`` as lower-case sentences: scrub tokens removed, white space collapsed, lobes written out."""
    parts = _STOP.split(_SCRUB.sub(" ", text).lower().replace(":", " "))
    clean = (re.sub(r"\s+", " ", part).strip(" ,.-*") for part in parts)
    return [locations.expand(part) for part in clean if part]


def make_sentence(finding: str, status: Status, location: str = "") -> Sentence:
    """The minimal sentence of a canonical finding name, in the shape that every report uses."""
    text = _SHAPES[status].format(finding, locations.phrase(location))
    return Sentence(text=text, status=status, finding=finding, location=location)


def _read(text: str) -> list[Sentence]:
    sentences = [make_sentence(finding, "absent", place) for finding, place in normal_statements(text)]
    for clause in _clauses(text):
        for statement in _statements(clause):
            if statement.status is None or _is_vague(statement, clause):
                continue
            finding = statement.mention.finding
            place = statement.location if finding.located else ""
            sentences.append(make_sentence(finding.name, statement.status, place))
            if finding.kind and statement.status != "absent":
                sentences.append(make_sentence(finding.kind, statement.status))
    return sentences


def _clauses(text: str) -> list[str]:
    """``text`` cut where one statement ends; a leading place ("in the left base, there is ...") stays attached."""
    leading = _LEADING_PLACE.match(text)
    cuts = [match.start() for match in _CLAUSE.finditer(text, leading.end() if leading else 0)]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _is_vague(statement: _Statement, clause: str) -> bool:
    """Whether an "abnormality" is of no known organ: "chronic lung disease", or "no acute abnormality" of the spine."""
    name = statement.mention.finding.name
    if name not in ("acute cardiopulmonary abnormality", "acute bony abnormality"):
        return False
    words = clause[statement.mention.start : statement.mention.end]
    if name == "acute cardiopulmonary abnormality" and len(words.split()) == 2 and _OTHER_ORGAN.search(clause):
        return True
    return statement.status != "absent" and not re.match("acute|active", words)


def _statements(clause: str) -> list[_Statement]:
    mentions = find_mentions(clause)
    result: list[_Statement] = []
    for index, mention in enumerate(mentions):
        left = mentions[index - 1].end if index else 0
        right = mentions[index + 1].start if index + 1 < len(mentions) else len(clause)
        status = _status(clause, mention)
        place = (
            locations.within(clause[mention.start : mention.end])
            or locations.before(clause[left : mention.start])
            or locations.after(clause[mention.end : right])
        )
        result.append(_Statement(mention, status, place))
    return _share(clause, result)


def _share(clause: str, statements: list[_Statement]) -> list[_Statement]:
    """What neighbours pass on: "A or B" is uncertain, a list shares a place, an explanation lies where its sign is."""
    shared = list(statements)
    for index in range(len(shared) - 2, -1, -1):
        one, two = shared[index], shared[index + 1]
        between = clause[one.mention.end : two.mention.start]
        if _ALTERNATIVE.match(between) and {one.status, two.status} in ({"present"}, {"present", "uncertain"}):
            one, two = (
                _Statement(one.mention, "uncertain", one.location),
                _Statement(two.mention, "uncertain", two.location),
            )
        if _LIST.match(between) and not one.location and locations.after(clause[two.mention.end :]):
            one = _Statement(one.mention, one.status, two.location)
        shared[index], shared[index + 1] = one, two
    for index in range(1, len(shared)):
        one, two = shared[index - 1], shared[index]
        between = clause[one.mention.end : two.mention.start]
        if not two.location and _EXPLAINS.search(between):
            shared[index] = _Statement(two.mention, two.status, one.location)
        elif one.status == two.status == "uncertain" and _ALTERNATIVE.match(between):
            shared[index] = _Statement(two.mention, two.status, two.location or one.location)
    return shared


def _status(clause: str, mention: Mention) -> Status | None:
    """Present, uncertain or absent; None for what is history, advice or a question."""
    words, tail = clause[mention.start : mention.end], clause[mention.end :]
    if _OWN_STATEMENT.search(words):
        if re.search(r"\b(?:not|no longer)\b", words):
            return "absent"
        return "uncertain" if re.search(r"\b(?:borderline|may|possibly|probably)\b", words) else "present"
    if _POST_UNCERTAIN.search(tail):
        return "uncertain"
    kinds = _open_cues(clause[: mention.start])
    if _POST_ABSENT.search(_until_next(tail)):  # before history: "the previously seen effusion has resolved"
        return "absent"
    if "ignore" in kinds:
        return None
    if "absent" in kinds:
        return "absent"
    return "uncertain" if "uncertain" in kinds else "present"


def _open_cues(text: str) -> set[str]:
    """The kinds of cue in ``text`` whose scope reaches its end."""
    kinds: set[str] = set()
    for match in _CUE.finditer(text):
        kind = next(name for n, (name, _) in enumerate(_STATUS_CUES) if match[f"c{n}"])
        rest = text[match.end() :]
        if kind == "absent" and _SCOPE_END.search(rest):
            continue
        if (
            kind == "uncertain"
            and re.search(r"[,;]|\band\b|\bwith\b", rest)
            and match[0] not in ("may", "could", "might")
        ):
            continue
        kinds.add(kind)
    return kinds


def _until_next(tail: str) -> str:
    """``tail`` up to the next finding, unless a list joins the two: "effusion or pneumothorax is not seen"."""
    mentions = find_mentions(tail)
    end = 0
    for mention in mentions:
        if not _LIST.match(tail[end : mention.start]):
            return tail[end : mention.start]
        end = mention.end
    return tail[end:]
