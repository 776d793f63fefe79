"""Every published protocol on a miniature of its tree, with real models, from the files to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from rayzero.alignment import registry
from rayzero.bundle import Bundle
from rayzero.config import load_config
from rayzero.evaluation.errors import EvaluationError
from rayzero.evaluation.protocols.registry import find_protocol, protocol_names
from rayzero.evaluation.report import write_report
from rayzero.studies.lake import Lake
from tests.alignment.tiny import tiny_brgsa
from tests.evaluation.miniatures import TREES, ingested, long_tail_labels

_VOLUMES = [name for name in TREES if TREES[name][0] in ("ct-rate-fixed", "rad-chestct", "inspect")]


@pytest.fixture(scope="module")
def films() -> Bundle:
    """An untrained RadZero."""
    overrides = ["vision.resolution=64", "model.heads=6", "model.blocks=1", "evaluation.bootstrap=40"]
    config = load_config(None, [*overrides, "evaluation.overlays=2"])
    torch.manual_seed(0)
    return Bundle(registry.build_zero_shot(config).eval(), config, {})


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained BrgSA."""
    config = tiny_brgsa(tmp_path_factory.mktemp("encoders"), "evaluation.bootstrap=40")
    return Bundle(registry.build_zero_shot(config).eval(), config, {})


class Lakes(dict[str, Lake]):
    """The miniatures by corpus, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> Lake:
        root = self.folder / name
        (root / "tree").mkdir(parents=True)
        next(write for corpus, write in TREES.values() if corpus == name)(root / "tree")
        self[name] = ingested(name, root / "tree", root / "lake")
        return self[name]


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> Lakes:
    return Lakes(tmp_path_factory.mktemp("lakes"))


def test_every_protocol_has_a_miniature() -> None:
    assert sorted([*TREES, "phantom"]) == protocol_names()


@pytest.mark.parametrize("name", TREES)
def test_a_protocol_reports_from_its_published_tree(
    name: str, films: Bundle, volumes: Bundle, lakes: Lakes, tmp_path: Path
) -> None:
    lake = lakes[TREES[name][0]]
    bundle = volumes if name in _VOLUMES else films
    labels = long_tail_labels() if name == "ct-rate-lt" else None
    result = find_protocol(name).run(bundle, lake, labels=labels)
    assert result.figures
    assert bool(result.labels) == (labels is not None)
    assert all(one.best.value == one.best.value for one in result.figures), [one.key for one in result.figures]
    assert any(one.strict is not None and one.strict.low <= one.strict.high for one in result.figures)
    where = write_report(result, str(tmp_path), overlays=2)
    payload = json.loads(Path(where, "report.json").read_text())
    benchmark = find_protocol(name).benchmark
    assert benchmark is not None
    for key, systems in benchmark.reference.items():
        if key in payload["figures"]:
            assert payload["figures"][key]["reference"] == dict(systems)
    assert benchmark.title.split(",")[0] in Path(where, "report.html").read_text()


def test_figures_are_those_of_the_images_joined_by_id(films: Bundle, lakes: Lakes) -> None:
    result = find_protocol("chestxdet10").run(films, lakes["chestx-det10"])
    text = films.encode_prompts(
        ["There is Atelectasis", "There is Tissue Calcification", "There is Pulmonary Consolidation"]
    )
    scores, truth = [], []
    for study in lakes["chestx-det10"].read(splits=["test"]):
        features = films.encode_images([films.prepare(study.images[0])[0]])
        scores.append(films.score(features, text)[0])
        truth.append([study.labels[label] for label in ("Atelectasis", "Calcification", "Consolidation")])
    areas = [roc_auc_score(np.array(truth)[:, c], np.array(scores)[:, c]) for c in range(3)]
    (macro,) = [one for one in result.figures if one.key == "macro_auroc"]
    assert macro.best.value == pytest.approx(np.mean(areas), abs=1e-6)
    assert macro.reference["RadZero 518"] == 0.787


def test_ms_cxr_is_measured_on_all_pairs_on_its_split_and_on_medrpgs_list(films: Bundle, lakes: Lakes) -> None:
    whole = find_protocol("ms-cxr").run(films, lakes["ms-cxr"])
    part = find_protocol("ms-cxr-split").run(films, lakes["ms-cxr"])
    listed = find_protocol("ms-cxr-medrpg").run(films, lakes["ms-cxr-medrpg"])
    assert (whole.split, part.split, listed.split) == ("test + validation", "test", "test")
    assert [one.counts["images"] for one in (whole, part, listed)] == [8, 6, 6]
    figures = {one.key: one.best for one in whole.figures}
    assert figures["cnr"].n == figures["miou"].n == figures["pointing"].n == 8
    assert {one.key: one.best.n for one in part.figures}["cnr"] == 6
    contrasts: dict[str, list[float]] = {}
    for one in whole.scored.images:
        (region,) = whole.scored.truth.studies[one.study_id].regions
        contrasts.setdefault(region.finding, []).extend(r.contrast for r in one.regions if r.contrast is not None)
    every = np.abs(np.concatenate([*contrasts.values()]))
    assert figures["cnr"].value == pytest.approx(every.mean())
    assert figures["macro_cnr"].value == pytest.approx(np.mean([np.abs(v).mean() for v in contrasts.values()]))
    assert [one.key for one in listed.figures] == ["pointing"]


def test_validation_images_calibrate_the_probabilities(films: Bundle, lakes: Lakes, tmp_path: Path) -> None:
    result = find_protocol("chestxray14").run(films, lakes["nih-chestxray14-community"])
    fit = result.calibration
    assert fit is not None
    # Twelve findings never occur among the nine validation images: they would only teach that logits mean nothing.
    assert fit.fitted_on == 3 * 9
    assert fit.calibrated.expected_error < fit.raw.expected_error
    assert result.card()["calibration"] == {"scale": fit.calibration.scale, "bias": fit.calibration.bias}
    where = write_report(result, str(tmp_path), overlays=0)
    assert "Expected calibration error" in Path(where, "report.html").read_text()
    payload = json.loads(Path(where, "report.json").read_text())
    assert payload["calibration"]["expected_calibration_error"] == fit.calibrated.expected_error
    assert find_protocol("chestxdet10").run(films, lakes["chestx-det10"]).calibration is None


def test_trap_14_thresholds_say_where_they_come_from(films: Bundle, lakes: Lakes) -> None:
    figures = {one.key: one for one in find_protocol("siim").run(films, lakes["siim-pneumothorax"]).figures}
    assert "oracle: chosen on the evaluated images" in figures["dice"].rule
    assert "strict: map logit above" in figures["dice"].rule
    assert "chosen on validation images" in figures["dice"].rule
    assert figures["dice"].published is not None
    assert figures["dice"].strict is not None
    crossed = {
        one.key: one for one in find_protocol("rsna-medklip").run(films, lakes["rsna-pneumonia-medklip"]).figures
    }
    assert "chosen on other patients of the split" in crossed["dice"].rule
    assert crossed["specificity"].published is not None


def test_what_does_not_fit_is_refused(films: Bundle, volumes: Bundle, lakes: Lakes) -> None:
    with pytest.raises(EvaluationError, match=r"measured on siim-pneumothorax; the lake at .* holds chexpert"):
        find_protocol("siim").run(films, lakes["chexpert"])
    with pytest.raises(EvaluationError, match=r"is of radiographs; the bundle of brgsa has data\.input=volume"):
        find_protocol("siim").run(volumes, lakes["siim-pneumothorax"])
    with pytest.raises(EvaluationError, match="give it with --labels"):
        find_protocol("ct-rate-lt").run(volumes, lakes["ct-rate-fixed"])
    with pytest.raises(EvaluationError, match="lacks 11 of 12 images, such as 'valid_1_a_2'"):
        find_protocol("ct-rate-lt").run(volumes, lakes["ct-rate-fixed"], labels={"valid_1_a_1": {}})
