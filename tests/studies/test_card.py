"""The data card says what the lake's counts say, and draws what can be drawn."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from rayzero.reports.sections import parse_report
from rayzero.reports.sentences import extract_sentences
from rayzero.studies.card import bars, render_card, write_card
from rayzero.studies.lake import Quarantined, write_lake
from rayzero.studies.study import Image, Study
from tests.studies.films import ramp

_REPORT = "FINDINGS: There is a small left pleural effusion. No pneumothorax.\n"


def _study(number: int) -> Study:
    report = parse_report(_REPORT if number % 2 else "")
    image = Image.from_array(
        f"s{number}/pa", ramp(), view="frontal", bits=12, window=(2047, 4095), inverted=number % 3 == 0
    )
    return Study(
        study_id=f"s{number}",
        patient_id=f"p{number}",
        corpus="test",
        split="train",
        study_time=datetime(2020, 1, 1, tzinfo=UTC).replace(tzinfo=None),
        images=(image,),
        report=report,
        sentences=extract_sentences(report),
    )


def test_card_counts_what_was_written(tmp_path: Path) -> None:
    refused = [Quarantined(study_id="x", file="a.dcm", stage="open", reason="not <b>DICOM</b>")] * 3
    lake = write_lake(str(tmp_path), [_study(number) for number in range(40)], refused)
    assert lake.counts["polarity"] == {"air bright": 14, "air dark": 26}
    assert lake.counts["bits"] == {"12": 40}
    assert lake.counts["sections"] == {"findings": 20, "no report": 20}
    assert lake.counts["present"] == {"pleural effusion": 20}
    assert lake.counts["absent"] == {"pneumothorax": 20}
    page = Path(write_card(lake).removeprefix("file://")).read_text()
    assert page == render_card(lake)
    assert "not &lt;b&gt;DICOM&lt;/b&gt;" in page
    assert page.count("data:image/jpeg;base64,") == 12
    assert "http" not in page


def test_polarity_is_of_radiographs_alone(tmp_path: Path) -> None:
    volume = Image.from_array("ct/0", np.zeros((2, 3, 4), np.int16), view="volume", bits=16)
    scans = [replace(_study(number), images=(volume,)) for number in range(2)]
    assert write_lake(str(tmp_path / "mixed"), [*scans, _study(2)]).counts["polarity"] == {"air dark": 1}
    only = write_lake(str(tmp_path / "ct"), scans)
    assert not only.counts["polarity"]
    assert "<h3>Polarity" not in render_card(only)


def test_an_empty_lake_has_a_card(tmp_path: Path) -> None:
    page = render_card(write_lake(str(tmp_path), []))
    assert "Everything that the corpus lists was read." in page


def test_bars_add_the_smallest_up() -> None:
    rows = bars({f"{number:03d}": number for number in range(1, 31)})
    assert [row.name for row in rows[:2]] == ["030", "029"]
    assert (rows[-1].name, rows[-1].number) == ("18 others", sum(range(1, 19)))
    assert abs(sum(row.share for row in rows) - 1) < 1e-9
    assert max(row.width for row in rows) == 100
    assert bars({}) == []
    assert np.isclose(bars({"a": 1, "b": 3})[1].width, 100 / 3)
