"""Equal texts are extracted once, answers kept, failures replaced by rules and counted."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rayzero.reports.extraction.base import ExtractionError, Outcome, Tally, Usage
from rayzero.reports.extraction.cache import AnswerCache, cache_key
from rayzero.reports.extraction.endpoint import Endpoint, EndpointSettings
from rayzero.reports.extraction.rules import Rules
from rayzero.reports.extraction.run import FAILURES_IN_A_ROW, extract_all
from rayzero.reports.extraction.styles import STYLES, Style
from rayzero.reports.sentences import extract_sentences, make_sentence
from rayzero.studies.study import Report
from tests.reports.extraction.server import ChatServer

MINIMAL = STYLES["minimal"]
ANSWER = json.dumps({"statements": [{"finding": "cardiomegaly", "status": "present", "location": ""}]})
REPORTS = {
    "a": Report(text="1", findings="The heart is enlarged."),
    "b": Report(text="2", findings="The heart is  enlarged."),
    "c": Report(findings="No pneumothorax."),
    "d": Report(),
}


def _endpoint(chat: ChatServer, model: str = "m") -> Endpoint:
    return Endpoint(EndpointSettings(base_url=chat.url, model=model, attempts=1, retries=0, concurrency=1))


def test_rules_are_a_strategy() -> None:
    found, tally = extract_all(REPORTS, Rules(), MINIMAL)
    assert {key: item.sentences for key, item in found.items()} == {
        key: extract_sentences(report) for key, report in REPORTS.items()
    }
    assert not any(item.fallback for item in found.values())
    assert (tally.reports, tally.answered, tally.done, tally.prompt_tokens) == (2, 2, 2, 0)


def test_equal_texts_are_asked_once_and_empty_ones_never(chat: ChatServer) -> None:
    chat.default = ANSWER
    seen: list[int] = []
    found, tally = extract_all(REPORTS, _endpoint(chat), MINIMAL, on_progress=lambda t: seen.append(t.done))
    assert len(chat.requests) == tally.reports == 2
    assert seen == [1, 2]
    assert found["a"].sentences is found["b"].sentences
    assert found["a"].sentences[0] is found["c"].sentences[0]  # equal sentences are one object
    assert found["d"].sentences == ()


@pytest.mark.parametrize("store", ["folder", "memory"])
def test_answers_are_kept_and_failures_are_not(store: str, tmp_path: Path, chat: ChatServer) -> None:
    url = str(tmp_path / "cache") if store == "folder" else f"memory://{uuid.uuid4()}"
    chat.script.extend([ANSWER, "no JSON"])
    _, first = extract_all(REPORTS, _endpoint(chat), MINIMAL, cache=AnswerCache(url))
    assert (first.answered, first.cached, dict(first.fallbacks)) == (1, 0, {"answer refused": 1})
    chat.default = ANSWER
    found, second = extract_all(REPORTS, _endpoint(chat), MINIMAL, cache=AnswerCache(url))
    assert (second.answered, second.cached, second.fallbacks.total()) == (1, 1, 0)
    assert len(chat.requests) == 3
    assert [s.text for s in found["a"].sentences] == ["There is cardiomegaly"]
    _, third = extract_all(REPORTS, _endpoint(chat), MINIMAL, cache=AnswerCache(url))
    assert (third.cached, len(chat.requests)) == (2, 3)


def test_another_model_or_style_is_another_answer(tmp_path: Path, chat: ChatServer) -> None:
    chat.default = ANSWER
    cache = AnswerCache(str(tmp_path))
    for model, style in (("m", "minimal"), ("n", "minimal"), ("m", "alignment")):
        _, tally = extract_all(REPORTS, _endpoint(chat, model), STYLES[style], cache=cache)
        assert (tally.answered, tally.cached) == (2, 0)


def test_a_damaged_answer_is_asked_for_again(tmp_path: Path, chat: ChatServer) -> None:
    chat.default = ANSWER
    extract_all(REPORTS, _endpoint(chat), MINIMAL, cache=AnswerCache(str(tmp_path)))
    for number, path in enumerate(sorted(tmp_path.rglob("*.json"))):
        path.write_text('{"sentences": [{"te' if number else "{}")
    _, tally = extract_all(REPORTS, _endpoint(chat), MINIMAL, cache=AnswerCache(str(tmp_path)))
    assert (tally.answered, tally.cached) == (2, 0)


def test_a_cache_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    cache = AnswerCache(str(tmp_path))
    assert cache.get(["ab" * 32]) == {}
    (tmp_path / "ab" / f"{'ab' * 32}.json").mkdir(parents=True)
    with pytest.raises(ExtractionError, match=r"the cache of answers at .* cannot be read"):
        cache.get(["ab" * 32, "cd" * 32])


def test_key_depends_on_what_is_read_alone() -> None:
    identity = {"strategy": "model", "model": "m"}
    keys = {key: cache_key(report, MINIMAL, identity) for key, report in REPORTS.items()}
    assert keys["a"] == keys["b"]
    assert len(set(keys.values())) == 3


class _SameWords:
    """Says one thing of every report, and takes another part of it for the place each time."""

    identity: Mapping[str, object] = {}
    caches = False
    parts = (("opacity in the right lung", ""), ("opacity", "right lung"))

    def extract(self, reports: Mapping[str, Report], style: Style) -> Iterator[tuple[str, Outcome]]:
        for key, (finding, place) in zip(reports, self.parts, strict=False):
            yield key, Outcome(sentences=(make_sentence(finding, "present", place),))


def test_sentences_of_equal_words_keep_their_findings() -> None:
    reports = {name: Report(findings=name) for name in "ab"}
    found, _ = extract_all(reports, _SameWords(), MINIMAL)
    one, two = (found[name].sentences[0] for name in "ab")
    assert one.text == two.text
    assert [(s.finding, s.location) for s in (one, two)] == list(_SameWords.parts)


class _FailsEachOther:
    """Fails on every second report."""

    identity: Mapping[str, object] = {}
    caches = False

    def extract(self, reports: Mapping[str, Report], style: Style) -> Iterator[tuple[str, Outcome]]:
        for number, key in enumerate(reports):
            yield key, Outcome(failure="broken" if number % 2 else "", usage=Usage(prompt_tokens=1))


class _AlwaysFails(_FailsEachOther):
    def extract(self, reports: Mapping[str, Report], style: Style) -> Iterator[tuple[str, Outcome]]:
        for key in reports:
            yield key, Outcome(failure="broken", detail="for good")


def test_scattered_failures_are_counted_and_failures_in_a_row_end_it() -> None:
    reports = {str(n): Report(findings=f"Nodule of {n} mm.") for n in range(3 * FAILURES_IN_A_ROW)}
    found, tally = extract_all(reports, _FailsEachOther(), MINIMAL)
    assert tally.fallbacks["broken"] == tally.answered == len(reports) / 2
    assert tally.prompt_tokens == len(reports)
    replaced = [key for key, item in found.items() if item.fallback]
    assert len(replaced) == tally.fallbacks.total()
    assert all(found[key].sentences == extract_sentences(reports[key]) for key in replaced)
    progress: list[Tally] = []
    with pytest.raises(ExtractionError, match="50 reports failed in a row; the last: broken: for good"):
        extract_all(reports, _AlwaysFails(), MINIMAL, on_progress=progress.append)
    assert len(progress) == FAILURES_IN_A_ROW
