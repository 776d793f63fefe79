"""The simulated chest: determinism, leakage of never-seen findings, geometry of films against CT, and masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rayzero.phantom import (
    FINDINGS,
    NEVER_SEEN,
    NEVER_SEEN_PATTERN,
    Study,
    region_phrase,
    render_ct,
    render_films,
    sample_patient,
    write_report,
)
from rayzero.phantom.contact_sheet import example_study
from rayzero.phantom.films import VIEWS, film_axes, path_map
from rayzero.phantom.pathology import build_anatomy
from rayzero.phantom.solids import View
from rayzero.phantom.volume import ct_axes

SIZE = 256


def test_a_patient_follows_from_seed_and_index_alone() -> None:
    first, again = sample_patient(3, 5, "test"), sample_patient(3, 5, "test")
    assert first == again
    assert write_report(first.studies[0]) == write_report(again.studies[0])
    films, repeat = render_films(first.studies[0], SIZE), render_films(again.studies[0], SIZE)
    np.testing.assert_array_equal(films.pa.pixels, repeat.pa.pixels)
    np.testing.assert_array_equal(films.lateral.pixels, repeat.lateral.pixels)
    for other in (sample_patient(3, 6, "test"), sample_patient(4, 5, "test")):
        assert other.patient_id != first.patient_id
        assert np.abs(render_films(other.studies[0], SIZE).pa.pixels - films.pa.pixels).mean() > 0.01


def test_never_seen_findings_stay_out_of_training_and_validation() -> None:
    for split in ("train", "validation"):
        for index in range(150):
            for study in sample_patient(1, index, split).studies:
                assert not NEVER_SEEN & {f.name for f in study.findings}
                assert not any(study.labels[name] for name in NEVER_SEEN)
                assert not NEVER_SEEN_PATTERN.search(write_report(study))


def test_prevalence_is_near_what_is_promised() -> None:
    studies = [s for index in range(1200) for s in sample_patient(2, index, "test").studies]
    for name in FINDINGS:
        share = np.mean([s.labels[name] != 0 for s in studies])
        low, high = (0.10, 0.17) if name in NEVER_SEEN else (0.10, 0.26)
        assert low <= share <= high, (name, share)
    assert 0.23 <= np.mean([not s.findings for s in studies]) <= 0.33
    assert 0.005 < np.mean([-1 in s.labels.values() for s in studies]) < 0.3


@pytest.mark.parametrize("view", VIEWS)
def test_a_film_is_the_projection_of_the_ct(view: View) -> None:
    for index in (0, 4):
        study = sample_patient(7, index, "test").studies[-1]
        volume = render_ct(study, 3.0)
        z, y, x = ct_axes(3.0)
        path, _ = path_map(build_anatomy(study), view, x if view == "frontal" else y, z[::-1])
        density = np.maximum(1 + volume.hu[::-1].astype(np.float32) / 1000, 0)
        projected = density.sum(axis=1 if view == "frontal" else 2) * 3.0
        assert np.corrcoef(path.ravel(), projected.ravel())[0, 1] > 0.99
        inside = projected > 60
        assert abs(np.median(path[inside] / projected[inside]) - 1) < 0.03


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_changes_the_film_where_its_mask_says(name: str) -> None:
    study = example_study(name, seed=21)
    films, clean = render_films(study, SIZE), render_films(replace(study, findings=()), SIZE)
    assert films.pa.regions, "every finding shows on the frontal film"
    assert not clean.pa.regions
    for film in (films.pa, films.lateral):
        for region in film.regions:
            rows, cols = np.nonzero(region.mask)
            assert region.mask.shape == film.pixels.shape
            assert region.box == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    axes = film_axes(SIZE)
    with_it, _ = path_map(build_anatomy(study), "frontal", *axes)
    without, _ = path_map(build_anatomy(replace(study, findings=())), "frontal", *axes)
    change = np.abs(with_it - without)
    mask = np.any([r.mask for r in films.pa.regions], axis=0)
    # The whole heart is marked, though only its border moves, and flat diaphragms change much below the lungs.
    ratio = {"cardiomegaly": 2.0, "emphysema": 1.0}.get(name, 4.0)
    assert change[mask].mean() > ratio * change[~mask].mean()


def test_volume_masks_mark_their_findings() -> None:
    study = example_study("lung nodule", seed=5)
    volume = render_ct(study, 2.5)
    diameter = (6 * volume.masks[0].sum() * 2.5**3 / np.pi) ** (1 / 3)
    assert abs(diameter - study.findings[0].size_mm) < 3
    assert volume.hu[volume.masks[0]].mean() > -100


def test_a_prior_study_links_and_explains_change() -> None:
    pairs = [p for p in (sample_patient(9, index, "train") for index in range(120)) if len(p.studies) > 1]
    assert len(pairs) > 20
    changes: set[str] = set()
    for patient in pairs:
        before, after = patient.studies
        assert after.prior == before
        assert before.time < after.time
        assert before.prior is None
        had, has = {f.name: f for f in before.findings}, {f.name: f for f in after.findings}
        assert {f.name for f in after.resolved} == had.keys() - has.keys()
        for name, finding in has.items():
            assert (finding.change == "new") == (name not in had)
            changes.add(finding.change)
            if finding.change == "worsened":
                assert finding.grade > had[name].grade
        assert "None" not in write_report(after).split("FINDINGS")[0].split("COMPARISON")[1]
    assert changes == {"new", "unchanged", "improved", "worsened"}


_SECTIONS = ("EXAMINATION", "INDICATION", "COMPARISON", "FINDINGS", "IMPRESSION")
_WORDS = {
    "cardiomegaly": ("cardiomegaly", "enlarge"),
    "pleural effusion": ("effusion", "pleural fluid"),
    "pneumothorax": ("pneumothorax",),
    "consolidation": ("consolidati",),
    "atelectasis": ("atelectasis",),
    "pulmonary edema": ("edema",),
    "lung nodule": ("nodul",),
    "lung mass": ("mass",),
    "emphysema": ("emphysema",),
    "rib fracture": ("fracture",),
    "calcified granuloma": ("granuloma",),
    "hiatal hernia": ("hernia",),
    "support device": ("catheter", "line", "pace", "device", "tube"),
}


def test_a_report_names_each_finding() -> None:
    studies: list[Study] = [s for index in range(150) for s in sample_patient(6, index, "test").studies]
    for study in studies:
        text = write_report(study)
        assert [
            title for title in ("EXAMINATION", "INDICATION", "COMPARISON", "FINDINGS", "IMPRESSION") if title in text
        ]
        body = text.split("FINDINGS: ")[1].split("IMPRESSION: ")
        for finding in study.findings:
            for section in body:
                assert any(word in section.lower() for word in _WORDS[finding.name]), (finding, text)
            assert any(word in region_phrase(study, finding).lower() for word in _WORDS[finding.name])
        assert "{" not in text
