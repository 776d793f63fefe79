"""The endpoint strategy over real HTTP: real generation, and every way in which a server lets one down."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from rayzero.reports.extraction.answers import AnswerError, read_answer
from rayzero.reports.extraction.base import ExtractionError, Outcome
from rayzero.reports.extraction.endpoint import Endpoint, EndpointSettings
from rayzero.reports.extraction.run import extract_all
from rayzero.reports.extraction.styles import STYLES
from rayzero.reports.sentences import extract_sentences
from rayzero.studies.study import Report
from tests.reports.extraction.server import MODEL, ChatServer, generate, load_model

MINIMAL = STYLES["minimal"]
REPORT = Report(findings="The heart is enlarged. No pneumothorax.")
ANSWER = json.dumps({"statements": [{"finding": "cardiomegaly", "status": "present", "location": ""}]})
TEXTS = ("There is cardiomegaly",)


def _endpoint(chat: ChatServer, **settings: Any) -> Endpoint:
    return Endpoint(EndpointSettings(**{"base_url": chat.url, "model": MODEL, "concurrency": 2, **settings}))


def _one(endpoint: Endpoint, report: Report = REPORT) -> Outcome:
    ((key, outcome),) = endpoint.extract({"a": report}, MINIMAL)
    assert key == "a"
    return outcome


def _texts(outcome: Outcome) -> tuple[str, ...]:
    return tuple(sentence.text for sentence in outcome.sentences)


@pytest.fixture(scope="module")
def model() -> None:
    try:
        load_model()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("model")
def test_a_real_model_held_to_the_schema_is_read_as_it_answers(chat: ChatServer) -> None:
    chat.script.extend([429, 500])  # both are repeated by the client before the model is reached
    outcome = _one(_endpoint(chat, max_tokens=32, attempts=1, timeout=300.0))
    text, prompt, completion = generate(chat.requests[-1], obey_schema=True)
    assert text.startswith('{"statements":')
    try:
        expected, failure = read_answer(text, MINIMAL), ""
    except AnswerError:  # so small a model may not come to an end in 32 tokens
        expected, failure = (), "answer refused"
    assert (outcome.sentences, outcome.failure) == (expected, failure)
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (prompt, completion)
    assert outcome.usage.retries == 2
    assert len(chat.requests) == 3


@pytest.mark.usefixtures("model")
def test_a_real_model_that_does_not_answer_in_json_is_replaced_by_rules(chat: ChatServer) -> None:
    chat.obey_schema = False
    endpoint = _endpoint(chat, max_tokens=12, attempts=1)  # 12 tokens cannot close the JSON
    found, tally = extract_all({"a": REPORT}, endpoint, MINIMAL)
    assert found["a"].sentences == extract_sentences(REPORT)
    assert found["a"].fallback.startswith("answer refused")
    assert (tally.answered, dict(tally.fallbacks)) == (0, {"answer refused": 1})
    assert tally.completion_tokens == 12


def test_requests_carry_the_schema_the_example_and_the_report(chat: ChatServer) -> None:
    chat.default = ANSWER
    assert _texts(_one(_endpoint(chat))) == TEXTS
    (body,) = chat.requests
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][-1]["content"] == "FINDINGS: The heart is enlarged. No pneumothorax."
    read_answer(body["messages"][2]["content"], MINIMAL)
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["temperature"] == 0.0


def test_a_refused_answer_is_asked_for_again_with_another_seed(chat: ChatServer) -> None:
    chat.script.extend(['{"statements": [', "I see a large heart.", ANSWER])
    outcome = _one(_endpoint(chat, attempts=3))
    assert _texts(outcome) == TEXTS
    assert [body["seed"] for body in chat.requests] == [0, 1, 2]
    assert chat.requests[1]["temperature"] > 0
    assert (outcome.usage.retries, outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (2, 300, 30)


def test_answers_refused_to_the_end_are_counted_with_their_tokens(chat: ChatServer) -> None:
    chat.default = "no JSON at all"
    found, tally = extract_all({"a": REPORT}, _endpoint(chat, attempts=2), MINIMAL)
    assert found["a"].sentences == extract_sentences(REPORT)
    assert "Invalid JSON" in found["a"].fallback
    assert (tally.prompt_tokens, tally.completion_tokens, tally.retries) == (200, 20, 1)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_faults_that_outlast_the_retries(status: int, chat: ChatServer) -> None:
    chat.script.extend([status] * 3)
    outcome = _one(_endpoint(chat, retries=2))
    assert (outcome.failure, outcome.usage.retries) == (f"HTTP {status}", 2)
    assert f"a fault of kind {status}" in outcome.detail
    assert len(chat.requests) == 3


def test_silence_is_a_timeout(chat: ChatServer) -> None:
    chat.script.append(1.0)
    chat.default = ANSWER
    outcome = _one(_endpoint(chat, timeout=0.2, retries=0))
    assert (outcome.failure, outcome.detail) == ("timeout", "no answer in 0.2 s")


def test_a_report_that_the_server_refuses_fails_alone(chat: ChatServer) -> None:
    chat.script.append(400)
    chat.default = ANSWER
    reports = {"a": REPORT, "b": Report(findings="Edema.")}
    outcomes = dict(_endpoint(chat, concurrency=1).extract(reports, MINIMAL))
    assert {key: outcome.failure for key, outcome in outcomes.items()} == {"a": "HTTP 400", "b": ""}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_every_report_would_meet_ends_the_extraction(status: int, chat: ChatServer) -> None:
    chat.script.append(status)
    with pytest.raises(ExtractionError, match=f"HTTP {status}.*check the address"):
        _one(_endpoint(chat))


def test_a_wrong_path_ends_the_extraction(chat: ChatServer) -> None:
    with pytest.raises(ExtractionError, match="HTTP 404"):
        _one(_endpoint(chat, base_url=chat.url.removesuffix("/v1")))


def test_no_server_is_a_failed_connection_and_many_end_the_extraction() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    endpoint = Endpoint(EndpointSettings(base_url=url, model="m", retries=0, concurrency=4))
    assert _one(endpoint).failure == "connection"
    reports = {str(n): Report(findings=f"Nodule of {n} mm.") for n in range(60)}
    with pytest.raises(ExtractionError, match="50 reports failed in a row; the last: connection"):
        extract_all(reports, endpoint, MINIMAL)


def test_many_reports_are_asked_side_by_side(chat: ChatServer) -> None:
    chat.default = ANSWER
    reports = {str(n): Report(findings=f"Nodule of {n} mm.") for n in range(40)}
    outcomes = dict(_endpoint(chat, concurrency=8).extract(reports, MINIMAL))
    assert outcomes.keys() == reports.keys()
    assert all(_texts(outcome) == TEXTS for outcome in outcomes.values())
