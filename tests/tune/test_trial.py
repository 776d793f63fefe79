"""A trial whose numbers are none has failed for good: the same steps would end the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from rayzero.config import load_config
from rayzero.training.nonfinite import NonFiniteError
from tests.tune.test_study import BUDGET, SPACE, study_at
from tune import trial
from tune.study import StudySearch


def test_a_loss_that_is_no_number_fails_the_trial_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretrain(config: object, callbacks: object) -> None:
        raise NonFiniteError("run 'trial-0000' stopped: loss is not a number at step 7")

    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(trial, "pretrain", pretrain)
    monkeypatch.setattr(trial.tune, "report", reports.append)
    monkeypatch.setattr(trial, "TuneReportCallback", lambda: None)
    study = study_at(tmp_path)
    search = StudySearch(study, SPACE, BUDGET)
    parameters = search.suggest("a")
    base = load_config(None, ["training.batch_size=10"])
    # It returns: Tune would start again what raises.
    trial.run_trial(parameters, space=SPACE, base=base, budget=BUDGET, folder=str(tmp_path))
    (reported,) = reports
    assert reported["error"] == "run 'trial-0000' stopped: loss is not a number at step 7"
    assert reported["error"] in capsys.readouterr().out
    search.receive("a", reported)
    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[0].user_attrs["run_folder"] == str(tmp_path / "trial-0000")
