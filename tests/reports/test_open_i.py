"""Rule-based sentences against Open-I's own 18 labels, on the half of the reports that nothing was tuned on."""

from __future__ import annotations

import json

import pytest

from rayzero.reports.open_i import OPEN_I, open_i_labels
from rayzero.reports.sentences import make_sentence
from rayzero.reports.vocabulary import BY_NAME
from tests.benchmarks import sentences as benchmark
from tests.benchmarks.open_i import LabelledReport, archive_path, load_reports


@pytest.fixture(scope="module")
def reports() -> tuple[LabelledReport, ...]:
    try:
        archive_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return load_reports()


def test_every_class_means_findings_of_the_vocabulary() -> None:
    assert len(OPEN_I) == 18
    assert all(findings <= BY_NAME.keys() for findings in OPEN_I.values())


def test_labels_of_sentences() -> None:
    stated = [make_sentence("calcified granuloma", "present"), make_sentence("pneumonia", "uncertain")]
    denied = [make_sentence("pulmonary edema", "absent")]
    assert open_i_labels(stated + denied) == {"Calcified Granuloma", "Granuloma", "Pneumonia"}


def test_labels_are_the_protocols(reports: tuple[LabelledReport, ...]) -> None:
    """The published counts, which are of the reports that have an image."""
    published = (364, 258, 179, 92, 6, 82, 82, 21, 72, 97, 21, 35, 51, 97, 421, 3, 218, 400)
    illustrated = [r for r in reports if r.illustrated]
    assert len(illustrated) == 3851
    assert tuple(sum(name in r.positives for r in illustrated) for name in OPEN_I) == published
    assert sum(not r.positives for r in illustrated) == 2429


def test_halves_are_fixed(reports: tuple[LabelledReport, ...]) -> None:
    held_out = sorted(r.uid for r in reports if r.held_out)
    assert (len(reports), len(held_out)) == (3955, 1959)
    assert held_out[:3] == ["CXR1", "CXR1000", "CXR1001"]


def test_held_out_half_reaches_the_bars(reports: tuple[LabelledReport, ...]) -> None:
    scores = benchmark.score(r for r in reports if r.held_out)
    assert benchmark.micro_f1(scores) >= benchmark.MICRO_BAR
    assert benchmark.macro_f1(scores) >= benchmark.MACRO_BAR
    assert all(sum(s.kinds.values()) == s.false_positives + s.false_negatives for s in scores)


def test_published_figures_are_those_of_this_code(reports: tuple[LabelledReport, ...]) -> None:
    recorded = json.loads(benchmark.RESULT.read_text())
    scores = benchmark.score(r for r in reports if r.held_out)
    assert {c["name"]: c["f1"] for c in recorded["classes"]} == {s.name: round(s.f1, 4) for s in scores}
    assert recorded["rows"][0]["measured"] == round(benchmark.micro_f1(scores), 4)
    assert recorded["rows"][1]["measured"] == round(benchmark.macro_f1(scores), 4)
