"""Validation figures where labels are few, and in the precision of training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayzero.alignment import registry
from rayzero.alignment.base import AlignmentModel
from rayzero.config import Config, load_config
from rayzero.studies.errors import LakeError
from rayzero.studies.lake import Lake, write_lake
from rayzero.studies.loading import lake_source
from rayzero.training.run import check_monitor
from rayzero.training.validation import validate
from tests.encoders.tiny import tiny_bert
from tests.toys import toy_study


def lake_of(folder: Path, *labelled: bool, first: int = 0) -> Lake:
    """A lake whose validation studies, from number ``first`` on, are ``labelled`` or not."""
    studies = [toy_study(0, "train")]
    for index, known in enumerate(labelled, start=first):
        study = toy_study(index, "validation")
        studies.append(study if known else replace(study, labels={}, regions=()))
    return write_lake(str(folder), studies)


def built(folder: Path, *changes: str) -> tuple[AlignmentModel, Config]:
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
    assert figures.keys() == {f"validation/{name}" for name in ("macro_auroc", "findings", "loss")}
    assert all(map(math.isfinite, figures.values()))
    assert seen == {precision == "bf16"}
