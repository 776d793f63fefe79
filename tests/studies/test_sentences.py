"""A lake's sentences made anew: everything else stays, and what rules had to write is on record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayzero.reports.extraction.base import ExtractionError
from rayzero.reports.extraction.endpoint import Endpoint, EndpointSettings
from rayzero.reports.extraction.rules import Rules
from rayzero.reports.extraction.styles import STYLES
from rayzero.reports.sentences import extract_sentences
from rayzero.studies.lake import Lake, Quarantined, open_lake, write_lake
from rayzero.studies.sentences import read_extraction, rewrite_sentences
from rayzero.studies.study import Image, Report, Study
from tests.reports.extraction.server import serve

ANSWER = '{"statements": [{"finding": "cardiomegaly", "status": "present", "location": ""}]}'
OLD = Quarantined(study_id="s9", file="a.dcm", stage="open", reason="not a DICOM file")


def _study(number: int) -> Study:
    image = Image.from_array(f"s{number}/pa", np.full((4, 4), number, np.uint16), view="frontal", bits=12)
    return Study(
        study_id=f"s{number}",
        patient_id=f"p{number}",
        corpus="test",
        split="train" if number < 40 else "test",
        images=(image,),
        report=Report(findings=f"Nodule of {number % 3} mm. No pneumothorax." if number else ""),
    )


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return write_lake(str(tmp_path / "lake"), [_study(n) for n in range(50)], [OLD])


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_only_the_sentences_change(lake: Lake, tmp_path: Path) -> None:
    assert read_extraction(lake) is None
    before = list(lake.read())
    result = rewrite_sentences(lake, str(tmp_path / "new"), Rules(), STYLES["minimal"])
    expected = [replace(study, sentences=extract_sentences(study.report)) for study in before]
    assert list(open_lake(str(tmp_path / "new")).read()) == expected
    assert list(lake.read()) == before
    assert result.lake.fingerprint != lake.fingerprint  # features are cached beside the sentences
    assert result.lake.counts["split"] == lake.counts["split"]
    assert result.lake.counts["total"]["without_sentences"] == 1
    assert result.lake.quarantine() == [OLD]
    assert (result.tally.reports, result.tally.answered) == (3, 3)


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_what_rules_had_to_write_is_in_the_quarantine_table(lake: Lake) -> None:
    with serve() as chat:
        chat.script.append("no JSON")
        chat.default = ANSWER
        settings = EndpointSettings(base_url=chat.url, model="m", attempts=1, concurrency=1)
        result = rewrite_sentences(lake, lake.url, Endpoint(settings), STYLES["alignment"])  # in place
    new = open_lake(lake.url)
    assert new.generation != lake.generation
    texts = {study.study_id: [s.text for s in study.sentences] for study in new.read()}
    refused = [entry for entry in new.quarantine() if entry.stage == "sentences"]
    assert {entry.study_id for entry in refused} == {f"s{n}" for n in range(1, 50) if n % 3 == 1}
    assert all(entry.reason.startswith("rules wrote the sentences (answer refused: Invalid JSON") for entry in refused)
    assert texts["s1"] == ["There is lung nodule", "There is no pneumothorax"]
    assert texts["s2"] == ["There is cardiomegaly"]
    assert texts["s0"] == []
    assert OLD in new.quarantine()
    card = read_extraction(new)
    assert card is not None
    assert card["strategy"] == {"strategy": "model", "model": "m", "temperature": 0.0, "max_tokens": 1024}
    assert card["style"] == {"name": "alignment", "version": 1}
    assert card["tally"]["fallbacks"] == {"answer refused": 1}  # type: ignore[index]
    assert result.tally.answered == 2
    again = rewrite_sentences(new, lake.url, Rules(), STYLES["minimal"])
    assert again.lake.quarantine() == [OLD]


def test_a_failed_extraction_leaves_the_lake_in_force(lake: Lake) -> None:
    with serve() as chat:
        chat.script.append(401)
        chat.default = ANSWER
        settings = EndpointSettings(base_url=chat.url, model="m", concurrency=1)
        with pytest.raises(ExtractionError, match="HTTP 401"):
            rewrite_sentences(lake, lake.url, Endpoint(settings), STYLES["minimal"])
    assert open_lake(lake.url).generation == lake.generation
