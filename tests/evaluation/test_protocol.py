from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rayzero.bundle import Bundle, Calibration
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.inference import InProcess, OnRay
from rayzero.evaluation.protocols.registry import find_protocol
from rayzero.evaluation.records import Task, from_table, to_table
from rayzero.evaluation.report import write_report
from rayzero.evaluation.result import EvaluationResult
from rayzero.metrics.grounding import first_peak, inside_any
from rayzero.studies.lake import Lake, write_lake
from rayzero.studies.study import Study
from tests.evaluation.lakes import FINDINGS, make_lake, studies

_TASK = Task(
    prompts=tuple((name, f"There is {name}") for name in FINDINGS),
    sentences=("There is no lung mass", "There may be cardiomegaly"),
    examples=frozenset(["test000", "test003"]),
)


@pytest.fixture(scope="module")
def result(bundle: Bundle, lake: Lake) -> EvaluationResult:
    return find_protocol("phantom").run(bundle, lake)


def test_every_required_figure_has_an_interval(result: EvaluationResult) -> None:
    out = result.to_json()
    paths = (
        ("classification", "macro_auroc"),
        ("classification", "seen", "macro_auroc"),
        ("classification", "never_seen", "macro_auroc"),
        ("grounding", "pointing_accuracy"),
        ("segmentation", "mean_dice"),
        ("retrieval", "recall_at_5"),
    )
    for path in paths:
        figure = out
        for key in path:
            figure = figure[key]
        assert set(figure) == {"value", "low", "high", "n"}
        assert 0.0 <= figure["low"] <= figure["high"] <= 1.0
        assert figure["n"] > 0
    assert out["classification"]["never_seen"]["findings"] == ["lung mass"]
    assert out["counts"]["images"] == 24
    assert out["counts"]["patients"] == 12
    assert out["system"] == "radzero"
    assert out["notes"] == []
    json.dumps(out, allow_nan=False)


def test_figures_equal_those_computed_study_by_study(result: EvaluationResult, bundle: Bundle, lake: Lake) -> None:
    text = bundle.encode_prompts([f"There is {name}" for name in FINDINGS])
    logits, labels = [], []
    hits: dict[str, list[bool]] = {name: [] for name in FINDINGS}
    for study in lake.read(splits=["test"]):
        image = study.image("frontal")
        assert image is not None
        pixels, geometry = bundle.prepare(image)
        features = bundle.encode_images([pixels])
        logits.append(bundle.score(features, text)[0])
        labels.append([study.labels[name] for name in FINDINGS])
        maps = bundle.similarity_map(features, text)[0]
        for region in study.regions:
            assert region.box is not None
            grid = geometry.restore(maps[FINDINGS.index(region.finding)])
            hits[region.finding].append(inside_any(first_peak(grid), [region.box]))
    scores, truth = np.array(logits), np.array(labels)
    areas = [roc_auc_score(truth[k, c], scores[k, c]) for c in range(3) for k in [truth[:, c] >= 0]]
    assert result.classification is not None
    assert result.grounding is not None
    assert result.classification.macro_auroc.value == pytest.approx(np.mean(areas))
    assert result.grounding.pointing_accuracy.value == pytest.approx(np.mean([np.mean(v) for v in hits.values()]))


def test_the_card_feeds_a_bundle(result: EvaluationResult, bundle: Bundle) -> None:
    card = json.loads(json.dumps(result.card()))
    told = Bundle(bundle.model, bundle.config, card)
    assert result.calibration is not None
    assert result.segmentation is not None
    assert told.calibration == result.calibration.calibration
    assert told.calibration != Calibration()
    assert told.map_threshold == result.segmentation.threshold


def test_the_card_carries_the_intervals(result: EvaluationResult, bundle: Bundle) -> None:
    assert result.calibration is not None
    fit = Calibration(2.0, -1.0, ((1.9, -1.1), (2.2, -0.9)))
    card = replace(result, calibration=replace(result.calibration, calibration=fit)).card()
    assert Bundle(bundle.model, bundle.config, json.loads(json.dumps(card))).calibration == fit


def test_the_oracle_is_never_worse_and_is_not_the_result(result: EvaluationResult) -> None:
    part = result.segmentation
    assert part is not None
    assert part.oracle_mean_dice >= part.mean_dice.value
    assert result.to_json()["segmentation"]["oracle"]["mean_dice"] == part.oracle_mean_dice


def test_records_survive_the_journey(bundle: Bundle, lake: Lake) -> None:
    records = InProcess(bundle, 8)(lake, "test", _TASK)
    assert any(region.grid is not None for one in records for region in one.regions)
    assert all(bool(one.thumbnail) == (one.study_id in _TASK.examples) for one in records)
    _assert_equal(from_table(to_table(records)), records, tolerance=0.0)


@pytest.fixture
def cluster() -> Iterator[None]:
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    if started:
        ray.shutdown()


@pytest.mark.cluster
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("cluster")
def test_ray_gives_what_one_process_gives(bundle: Bundle, bundle_url: str, tmp_path: Path) -> None:
    lake = make_lake(tmp_path, test=70)
    assert len(lake.row_groups(["test"])) == 3
    here = InProcess(bundle, 8)(lake, "test", _TASK)
    _assert_equal(OnRay(bundle_url, bundle.config, 8, workers=2)(lake, "test", _TASK), here, tolerance=1e-4)


def _assert_equal(left: list, right: list, tolerance: float) -> None:
    assert [one.image_id for one in left] == [one.image_id for one in right]
    for one, other in zip(left, right, strict=True):
        assert (one.patient_id, one.size, one.thumbnail) == (other.patient_id, other.size, other.thumbnail)
        np.testing.assert_allclose(one.logits, other.logits, atol=tolerance)
        np.testing.assert_allclose(one.sentences, other.sentences, atol=tolerance)
        for mine, theirs in zip(one.regions, other.regions, strict=True):
            assert (mine.finding, mine.hit, mine.peak) == (theirs.finding, theirs.hit, theirs.peak)
            assert mine.chance == theirs.chance
            assert (mine.grid is None) == (theirs.grid is None)
            if mine.grid is not None:
                np.testing.assert_allclose(mine.grid, theirs.grid, atol=tolerance)
            # A value that moves by the tolerance may cross one threshold.
            if tolerance == 0.0:
                assert np.array_equal(mine.histograms.everything, theirs.histograms.everything)
            assert mine.histograms.foreground.sum() == theirs.histograms.foreground.sum()


def test_both_report_files_are_written_and_stand_alone(result: EvaluationResult, tmp_path: Path) -> None:
    where = write_report(result, str(tmp_path / "run" / "evaluation"), extra={"seconds": {"evaluate": 3.5}})
    payload = json.loads((Path(where) / "report.json").read_text())
    assert payload["seconds"] == {"evaluate": 3.5}
    assert payload["classification"] == result.to_json()["classification"]
    page = (Path(where) / "report.html").read_text()
    assert "lung mass" in page
    assert page.count("<figure>") > 0
    for outside in ('src="http', 'href="http', "url(http", "@import"):
        assert outside not in page.replace('xlink:href="#', "")


def test_a_report_goes_to_any_file_system(result: EvaluationResult) -> None:
    import fsspec

    where = write_report(result, "memory://runs/evaluated")
    assert fsspec.filesystem("memory").exists(f"{where}/report.html")


def test_markup_in_a_lake_is_shown_not_run(bundle: Bundle, tmp_path: Path) -> None:
    def poisoned(study: Study) -> Study:
        text = "<script>alert(1)</script>"
        labels = {**study.labels, text: study.labels["cardiomegaly"]}
        sentences = tuple(replace(sentence, text=f"{text} {sentence.text}") for sentence in study.sentences)
        return replace(study, labels=labels, sentences=sentences)

    rows = [*studies("validation", 8, 0), *(poisoned(study) for study in studies("test", 16, 1))]
    outcome = find_protocol("phantom").run(bundle, write_lake(str(tmp_path / "lake"), rows))
    write_report(outcome, str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_leaks_between_splits_are_noted(bundle: Bundle, tmp_path: Path) -> None:
    def leaked(study: Study) -> Study:
        return replace(study, patient_id="test-p000", labels={**study.labels, "lung mass": 1})

    rows = [*(leaked(study) for study in studies("validation", 8, 0)), *studies("test", 16, 1)]
    notes = find_protocol("phantom").run(bundle, write_lake(str(tmp_path), rows)).notes
    assert len(notes) == 2
    assert "1 patients" in notes[0]
    assert "lung mass" in notes[1]


@pytest.mark.parametrize(
    ("strip", "message"),
    [
        ({"labels": {}}, "no labels"),
        ({"regions": ()}, "no boxes"),
        ({"sentences": ()}, "0 studies with report sentences"),
        ({"images": ()}, "no frontal image"),
    ],
)
def test_nothing_is_evaluated_on_nothing(bundle: Bundle, tmp_path: Path, strip: dict, message: str) -> None:
    stripped = (replace(study, **strip) for study in studies("test", 16, 1))
    bare = write_lake(str(tmp_path), [*studies("validation", 8, 0), *stripped])
    with pytest.raises(EvaluationError, match=message) as caught:
        find_protocol("phantom").run(bundle, bare)
    assert "'test'" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_a_missing_split_is_named(bundle: Bundle, tmp_path: Path, missing: str) -> None:
    present = "test" if missing == "validation" else "validation"
    half = write_lake(str(tmp_path), studies(present, 8, 0))
    with pytest.raises(EvaluationError, match=f"no split '{missing}'"):
        find_protocol("phantom").run(bundle, half)


def test_validation_cannot_judge_itself(bundle: Bundle, lake: Lake) -> None:
    with pytest.raises(EvaluationError, match="evaluate another split"):
        find_protocol("phantom").run(bundle, lake, split="validation")


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(EvaluationError, match="did you mean 'phantom'"):
        find_protocol("fantom")
