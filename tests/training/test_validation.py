"""Validation figures where labels are few, and in the precision of training."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist

from rayzero.alignment import registry
from rayzero.alignment.base import AlignmentModel, TextFeatures
from rayzero.bundle import AnyGeometry, Bundle
from rayzero.config import Config, ConfigError, TrainingConfig, dump_yaml, load_config
from rayzero.evaluation import sections
from rayzero.evaluation.inference import InProcess
from rayzero.evaluation.metrics.bootstrap import Bootstrap
from rayzero.evaluation.records import Task
from rayzero.evaluation.sections import Scored
from rayzero.evaluation.truth import read_truth
from rayzero.studies.errors import LakeError
from rayzero.studies.examples import Array
from rayzero.studies.lake import Lake, open_lake, write_lake
from rayzero.studies.loading import lake_source
from rayzero.studies.preprocess import prepare
from rayzero.studies.study import Image, Sentence
from rayzero.training.progress import score
from rayzero.training.run import check_monitor
from rayzero.training.validation import validate
from rayzero.training.zero_shot import FIGURES
from tests.encoders.tiny import WORDS, tiny_bert
from tests.processes import in_processes
from tests.toys import toy_study


def lake_of(folder: Path, *labelled: bool, first: int = 0) -> Lake:
    """A lake whose validation studies, from number ``first`` on, are ``labelled`` or not."""
    studies = [toy_study(0, "train")]
    for index, known in enumerate(labelled, start=first):
        study = toy_study(index, "validation")
        studies.append(study if known else replace(study, labels={}, regions=()))
    return write_lake(str(folder), studies)


def built(folder: Path, *changes: str) -> tuple[AlignmentModel, Config]:
    torch.manual_seed(0)  # of the text encoder, too, which is drawn here
    config = load_config(None, [f"text.encoder={tiny_bert(folder)}", "vision.resolution=64", "model.heads=2", *changes])
    torch.manual_seed(0)
    model = registry.build(config)
    assert isinstance(model, AlignmentModel)
    return model, config


def test_studies_without_labels_leave_the_figures_to_the_others(tmp_path: Path) -> None:
    model, config = built(tmp_path, "training.retrieval_studies=0")
    labelled, mixed, silent = (
        lake_source(lake_of(tmp_path / name, *known, first=first), "validation", config.data, 64)
        for name, known, first in (("labelled", [True] * 4, 0), ("mixed", [True] * 4, 0), ("silent", [False] * 3, 4))
    )
    # Row groups of two lakes: one with labels, one without any.
    mixed = replace(mixed, row_groups=mixed.row_groups + silent.row_groups)
    expected = validate(model, labelled, config, rank=0, world_size=1)
    assert expected["validation/findings"] == 2
    assert validate(model, mixed, config, rank=0, world_size=1) == expected
    nothing = validate(model, silent, config, rank=0, world_size=1)
    assert nothing["validation/findings"] == 0
    assert math.isnan(nothing["validation/macro_auroc"])


def test_a_split_without_texts_has_no_loss(tmp_path: Path) -> None:
    """0 would be the best figure that a run can reach."""
    model, config = built(tmp_path, "training.monitor=loss")
    silent = [replace(toy_study(index, "validation"), sentences=()) for index in range(2)]
    lake = write_lake(str(tmp_path / "silent"), [toy_study(0, "train"), *silent])
    source = lake_source(lake, "validation", config.data, 64)
    figures = validate(model, source, config, rank=0, world_size=1)
    assert math.isnan(figures["validation/loss"])
    assert score(figures, config.training) is None


@pytest.mark.parametrize("change", ["training.early_stopping=3", "training.schedule=plateau"])
def test_what_follows_a_figure_that_there_is_not_is_refused(tmp_path: Path, change: str) -> None:
    silent, known = lake_of(tmp_path / "silent", True, False), lake_of(tmp_path / "known", True, True)
    with pytest.raises(LakeError, match=r"no finding is labelled present .* set training\.monitor=loss"):
        check_monitor(load_config(None, [change]), silent)
    check_monitor(load_config(None, [change, "training.monitor=loss"]), silent)
    check_monitor(load_config(None, []), silent)
    check_monitor(load_config(None, [change]), known)
    with pytest.raises(LakeError, match="needs a validation split"):
        check_monitor(load_config(None, [change]), write_lake(str(tmp_path / "none"), [toy_study(0, "train")]))


def varied_lake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """16 validation studies in three row groups, reports told apart by a sentence; every third region is a mask alone,
    and a few studies have no report."""
    monkeypatch.setattr("rayzero.studies.lake.GROUP_STUDIES", 6)
    studies = [toy_study(0, "train")]
    for index in range(16):
        study = toy_study(index, "validation")
        own = Sentence(text=f"the {WORDS[index]} of the {WORDS[-index]}", status="present", finding="")
        regions = tuple(replace(one, box=None) for one in study.regions) if index % 3 == 0 else study.regions
        said = () if index in (5, 9) else (*study.sentences, own)
        studies.append(replace(study, regions=regions, sentences=said))
    return write_lake(str(folder), studies)


def test_figures_are_those_of_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = built(tmp_path, "evaluation.bootstrap=0", "evaluation.batch_size=4")
    lake = varied_lake(tmp_path / "lake", monkeypatch)
    figures = validate(model, lake_source(lake, "validation", config.data, 64), config, rank=0, world_size=1)

    def as_stored(bundle: Bundle, image: Image) -> tuple[Array, AnyGeometry]:
        pixels, geometry = prepare(image, bundle.config.data, 64)
        return pixels.astype(np.float16).astype(np.float32), geometry

    # Examples are kept in float16, which may turn the order of two close scores round.
    monkeypatch.setattr(Bundle, "prepare", as_stored)
    truth = read_truth(lake, "validation")
    task = Task(tuple((name, f"There is {name}") for name in truth.findings), truth.sentences)
    scored = Scored(truth, InProcess(Bundle(model.eval(), config, {}), 16)(lake, "validation", task), truth.findings)
    bootstrap = Bootstrap(scored.patients, 0)
    recall = sections.retrieval(scored, bootstrap).instance.recall["image_to_report"]
    expected = {
        "macro_auroc": sections.classification(scored, bootstrap, {}).macro_auroc.value,
        "findings": 2,
        "pointing_accuracy": sections.grounding(scored, bootstrap, {}).pointing_accuracy.value,
        **{f"report_recall_at_{k}": one.value for k, one in zip((1, 5, 10), recall, strict=True)},
    }
    assert figures == pytest.approx({f"validation/{name}": value for name, value in expected.items()})
    assert 0 < figures["validation/pointing_accuracy"] < 1
    assert 0 < figures["validation/report_recall_at_5"] < figures["validation/report_recall_at_10"] < 1


def of_one_process(rank: int, folder: str) -> None:
    config = load_config(Path(folder, "config.yaml"))
    source = lake_source(open_lake(f"{folder}/lake"), "validation", config.data, 64)
    torch.manual_seed(0)
    model = registry.build(config)
    figures = validate(model, source, config, rank=rank, world_size=dist.get_world_size())
    Path(folder, f"rank{rank}.json").write_text(json.dumps(figures))


def test_two_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = varied_lake(tmp_path / "lake", monkeypatch)
    model, config = built(tmp_path, "training.retrieval_studies=12")
    encoded: list[str] = []
    encode = model.encode_prompts

    def spied(texts: list[str]) -> TextFeatures:
        encoded.extend(texts)
        return encode(texts)

    monkeypatch.setattr(model, "encode_prompts", spied)
    source = lake_source(lake, "validation", config.data, 64)
    assert len(source.row_groups) == 3
    alone = validate(model, source, config, rank=0, world_size=1)
    assert len(encoded) == len(set(encoded))  # each text once, whatever the row groups
    assert alone.keys() == {"validation/findings"} | {f"validation/{name}" for name in FIGURES}
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    in_processes(2, of_one_process, str(tmp_path))
    assert [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)] == [alone, alone]


@pytest.mark.parametrize(
    ("monitor", "more", "message"),
    [
        ("pointing_accuracy", [], r"pointing_accuracy, and no image of the validation split has a box or mask"),
        ("report_recall_at_5", [], r"5 studies of the validation split have report sentences and more than 5"),
        ("report_recall_at_1", ["training.retrieval_studies=0"], r"training\.retrieval_studies=0 are not more than 1"),
        ("pointing_accuracy", ["training.early_stopping=2"], r"training\.early_stopping follows .* no image"),
        ("macro_auroc", ["training.early_stopping=2"], "no finding is labelled present"),
    ],
)
def test_a_figure_that_the_lake_cannot_give_is_refused_as_the_monitor(
    tmp_path: Path, monitor: str, more: list[str], message: str
) -> None:
    silent, known = lake_of(tmp_path / "silent", *[False] * 5), lake_of(tmp_path / "known", *[True] * 6)
    config = load_config(None, [f"training.monitor={monitor}", *more])
    with pytest.raises(LakeError, match=message):
        check_monitor(config, silent)
    if "training.retrieval_studies=0" not in more:
        check_monitor(config, known)
    with pytest.raises(LakeError, match="needs a validation split"):
        check_monitor(config, write_lake(str(tmp_path / "none"), [toy_study(0, "train")]))


def test_a_system_that_answers_nothing_has_no_zero_shot_figure(tmp_path: Path) -> None:
    config = load_config(None, ["system=mrm", "training.monitor=pointing_accuracy"])
    with pytest.raises(ConfigError, match="system 'mrm' answers no queries"):
        check_monitor(config, lake_of(tmp_path, True, True))


def test_every_figure_can_be_the_monitor() -> None:
    assert {*FIGURES, "loss"} == {*get_args(TrainingConfig.model_fields["monitor"].annotation)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_figures_are_computed_in_the_precision_of_training(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = built(tmp_path, f"training.precision={precision}", "training.monitor=loss")
    seen: set[bool] = set()
    for name in ("score", "represent"):
        original = getattr(model, name)

        def spied(*given, original=original, **more):  # type: ignore[no-untyped-def]
            seen.add(torch.is_autocast_enabled("cpu"))
            return original(*given, **more)

        monkeypatch.setattr(model, name, spied)
    source = lake_source(lake_of(tmp_path / "lake", *[True] * 4), "validation", config.data, 64)
    figures = validate(model, source, config, rank=0, world_size=1)
    # Four studies: the first five reports would be all of them.
    named = ("macro_auroc", "findings", "pointing_accuracy", "report_recall_at_1", "loss")
    assert figures.keys() == {f"validation/{name}" for name in named}
    assert all(map(math.isfinite, figures.values()))
    assert seen == {precision == "bf16"}
