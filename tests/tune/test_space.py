"""Spaces: the shipped ones are valid, and wrong ones say what is wrong before a trial starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from rayzero.config import Config, ConfigError, load_config, override
from rayzero.studies.lake import Lake, write_lake
from rayzero.studies.study import Report
from rayzero.training import owner
from rayzero.training.errors import TrainingError
from rayzero.training.run import count_examples, open_training_lake
from tests.toys import toy_study
from tune import sweep as sweeps
from tune.budget import Budget, plan
from tune.space import Halving, load_space
from tune.sweep import Sweep, _budget, _open_lake, concurrent_trials, prepare, run_sweep
from tune.trial import trial_config

SPACES = Path(__file__).parents[2] / "tune" / "spaces"


def prepared(text: str, folder: Path, **options: str) -> Sweep:
    path = folder / "space.yaml"
    path.write_text(f"preset: quickstart\n{text}\n")
    return prepare(load_space(path), "small", **options)


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_spaces_are_valid_at_all_ends(path: Path) -> None:
    sweep = prepare(load_space(path), path.stem)
    largest = max(config.training.largest_batch for config in sweep.extremes)
    plan(sweep.base, sweep.space.halving, examples=10_000, largest_batch=largest)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        override(sweep.base, sweep.space.settings(sweep.space.suggest(study.ask())))


TEMPERATURE = "model.temperature: {type: float, low: 0.1, high: 0.2}"
SENTENCES = "type: int, low: 1, high: 3"
TEXTS = "data.texts: {type: choice, values: [sentences, caption]}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {model.temprature: {type: float, low: 0.1, high: 0.2}}", "did you mean 'temperature'?"),
        ("parameters: {trainning.lr: {type: float, low: 0.1, high: 0.2}}", "did you mean 'training'?"),
        ("parameters: {model.temperature: {type: float, low: 0.1, high: 9}}", "model.temperature=9"),
        ("parameters: {training.lr: {type: float, low: 0.2, high: 0.1}}", "are no range"),
        ("parameters: {training.lr: {type: float, low: 0, high: 0.1, log: true}}", "are no range for log=true"),
        ("parameters: {training.lr: {type: flaot, low: 0, high: 0.1}}", "flaot"),
        ("parameters: {model.blocks: {type: int, low: 9, high: 3}}", "are no range"),
        ("parameters: {}", "at least 1 item"),
        ("parameters: {data.texts: {type: choice, values: []}}", "at least 1 item"),
        ("parameters: {data.texts: {type: choice, values: [caption, caption]}}", "names one twice"),
        ("parameters: {training.steps: {type: int, low: 1, high: 2}}", "is the budget"),
        ("parameters: {seed: {type: int, low: 1, high: 2}}", "is the sweep's"),
        (
            "parameters: {loss: {type: choice, values: [a]}}\nfollows: {loss: {a: {training.steps: 3}}}",
            "follows.loss: 'training.steps' is the budget",
        ),
        (f"parameters: {{{TEMPERATURE}}}\nobjectives: [{{metric: loss, mode: max}}]", "the lower the better"),
        ("parameters: {loss: {type: choice, values: [a, b]}}", "names no setting"),
        (f"parameters: {{{TEMPERATURE}}}\ntrails: 3", "did you mean 'trials'?"),
        (f"parameters: {{{TEMPERATURE}}}\nobjectives: [{{metric: validation/auroc}}]", "'validation/macro_auroc'?"),
        (f"parameters: {{{TEMPERATURE}}}\nobjectives: [{{metric: validation/loss}}]", "training.monitor=loss"),
        (f"parameters: {{{TEMPERATURE}}}\nsampler: grid", "sampler=grid takes choices"),
        (f"parameters: {{{TEMPERATURE}}}\nstart: [{{model.temperature: 0.5}}]", "outside of [0.1, 0.2]"),
        (f"parameters: {{{TEMPERATURE}}}\nstart: [{{model.temprature: 0.1}}]", "mean 'model.temperature'?"),
        (
            f"parameters: {{{TEMPERATURE}}}\nhalving: {{}}\nobjectives: [{{metric: loss}}, {{metric: time_total_s}}]",
            "halving compares trials by one objective",
        ),
        (
            f"parameters: {{{TEXTS}, data.caption_sentences: {{{SENTENCES}, when: {{data.text: [x]}}}}}}",
            "did you mean 'data.texts'?",
        ),
        (
            f"parameters: {{{TEXTS}, data.caption_sentences: {{{SENTENCES}, when: {{data.texts: [x]}}}}}}",
            "is not among ['sentences', 'caption']",
        ),
        (f"parameters: {{{TEXTS}}}\nfollows: {{data.text: {{caption: {{}}}}}}", "did you mean 'data.texts'?"),
        (f"parameters: {{{TEXTS}}}\nfollows: {{data.texts: {{report: {{}}}}}}", "is none of its values"),
        (
            f"parameters: {{{TEXTS}}}\nfollows: {{data.texts: {{caption: {{model.blocs: 1}}}}}}",
            "did you mean 'blocks'?",
        ),
        ("parameters: {loss: {type: choice, values: [a, b]}}\nfollows: {loss: {a: {}}}", "says nothing of ['b']"),
    ],
)
def test_wrong_spaces_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(text, tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nowhere/at/all/sweep.db", "unable to open database file"),
        ("postgresql://me:secret@127.0.0.1:9/optuna", "cannot be reached"),
        ("postgers://127.0.0.1/optuna", "postgers"),
        ("sweep.db", "cannot be reached"),
    ],
)
def test_a_database_that_cannot_be_reached_is_named_without_its_password(
    url: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(f"parameters: {{{TEMPERATURE}}}", tmp_path, database=url)
    assert str(caught.value).startswith(f"database {url.replace('secret', '***')}: ")
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("figure", ["pointing_accuracy", "report_recall_at_1", "report_recall_at_5"])
def test_an_objective_that_the_lake_cannot_give_is_refused_before_any_trial(figure: str, tmp_path: Path) -> None:
    space = f"parameters: {{{TEMPERATURE}}}\nobjectives: [{{metric: validation/{figure}}}]"
    silent = replace(toy_study(1, "validation"), regions=(), sentences=())
    for name, study in (("silent", silent), ("known", toy_study(1, "validation"))):
        write_lake(f"{tmp_path}/{name}", [toy_study(0, "train"), study, replace(study, study_id="other")])
    (tmp_path / "space.yaml").write_text(f"preset: quickstart\n{space}\n")
    sweep = prepare(load_space(tmp_path / "space.yaml"), "small", [f"data.lake={tmp_path}/silent"])
    with pytest.raises(ConfigError, match=rf"'validation/{figure}' is reported by no run on the lake .*silent"):
        _open_lake(sweep)
    sweep = prepare(load_space(tmp_path / "space.yaml"), "small", [f"data.lake={tmp_path}/known"])
    if figure == "report_recall_at_5":
        with pytest.raises(ConfigError, match="2 studies of the validation split have report sentences"):
            _open_lake(sweep)
    else:
        _open_lake(sweep)


def test_a_missing_file_and_remote_storage_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sweep file"):
        load_space(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="give --database"):
        prepare(load_space(SPACES / "quickstart.yaml"), "remote", ["storage=s3://bucket/runs"])


CONDITIONAL = f"""
parameters:
  {TEXTS}
  data.caption_sentences: {{type: choice, values: [1, 3], when: {{data.texts: [caption]}}}}
  vision.resolution: {{type: choice, values: [64, 128]}}
follows:
  vision.resolution: {{64: {{training.batch_size: 48}}}}
"""


def test_conditions_hold_in_trials_and_in_the_grid(tmp_path: Path) -> None:
    space = prepared(CONDITIONAL, tmp_path).space
    grid = space.grid()
    assert len(grid) == 6
    assert all(("data.caption_sentences" in point) == (point["data.texts"] == "caption") for point in grid)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [space.suggest(study.ask()) for _ in range(40)]
    assert {tuple(sorted(map(str, point.values()))) for point in drawn} == {
        tuple(sorted(map(str, point.values()))) for point in grid
    }


def test_what_follows_a_value_is_set_with_it(tmp_path: Path) -> None:
    space = prepared(CONDITIONAL, tmp_path).space
    small = {"data.texts": "sentences", "vision.resolution": 64}
    assert space.settings(small) == {**small, "training.batch_size": 48}
    large = {**small, "vision.resolution": 128}
    assert space.settings(large) == large


def test_trials_see_equally_many_images_whatever_their_batch(tmp_path: Path) -> None:
    base = override(prepared(CONDITIONAL, tmp_path).base, {"training.steps": 90, "training.warmup_steps": 9})
    budget = plan(base, Halving(reduction=3, rungs=2), examples=500, largest_batch=48)
    assert (budget.images, budget.unit) == (90 * 32, 320)
    assert budget.unit is not None
    for batch in (16, 32, 48):
        trial = override(base, {"training.batch_size": batch})
        training = override(trial, budget.settings(trial)).training
        assert 0 <= training.steps * batch - budget.images < batch
        assert 0 <= training.validate_every * batch - budget.unit < batch
        assert training.warmup_steps == training.steps // 10


def test_halving_that_does_not_fit_the_run_is_refused(tmp_path: Path) -> None:
    base = prepared(CONDITIONAL, tmp_path).base
    with pytest.raises(ConfigError, match=r"set training.epochs=9"):
        plan(override(base, {"training.epochs": 4}), Halving(), examples=500, largest_batch=48)
    with pytest.raises(ConfigError, match="too few for halving"):
        plan(
            override(base, {"training.steps": 4, "training.warmup_steps": 0}), Halving(), examples=500, largest_batch=48
        )


def test_trials_are_compared_where_the_smallest_epoch_of_the_space_ends(tmp_path: Path) -> None:
    studies = [toy_study(index, "train") for index in range(6)]
    for index in (4, 5):
        (image,) = studies[index].images
        studies[index] = replace(studies[index], images=(replace(image, view="lateral"),))
    write_lake(f"{tmp_path}/lake", studies)
    (tmp_path / "space.yaml").write_text(
        """
preset: quickstart
overrides: {data.views: [frontal, lateral], training.epochs: 9, training.batch_size: 2, training.warmup_steps: 0}
parameters: {views: {type: choice, values: [both, frontal]}}
follows: {views: {both: {}, frontal: {data.views: [frontal]}}}
halving: {reduction: 3, rungs: 2}
"""
    )
    sweep = prepare(load_space(tmp_path / "space.yaml"), "small", [f"data.lake={tmp_path}/lake"])
    budget = _budget(sweep, open_training_lake(sweep.base))
    # Four studies are frontal: at a batch of two, at least three images of each epoch.
    assert (budget.images, budget.unit) == (27, 3)


def test_the_lake_is_counted_once_for_all_settings_that_keep_its_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = [toy_study(index, "train") for index in range(4)]
    write_lake(f"{tmp_path}/lake", [*studies[:3], replace(studies[3], report=Report(), sentences=())])
    (tmp_path / "space.yaml").write_text(
        """
preset: quickstart
overrides: {training.epochs: 1, training.batch_size: 2, training.warmup_steps: 0}
parameters:
  data.intensity: {type: choice, values: [voi, minmax]}
  data.geometry: {type: choice, values: [stretch, pad]}
  data.texts: {type: choice, values: [sentences, caption, report]}
"""
    )
    counted: list[str] = []

    def count(config: Config, lake: Lake) -> int:
        counted.append("report" if config.data.texts == "report" else "sentences")
        return count_examples(config, lake)

    monkeypatch.setattr(sweeps, "count_examples", count)
    sweep = prepare(load_space(tmp_path / "space.yaml"), "small", [f"data.lake={tmp_path}/lake"])
    assert len(sweep.extremes) > 2
    # Three studies have text: at a batch of two, at least two images of an epoch.
    assert _budget(sweep, open_training_lake(sweep.base)).images == 2
    assert sorted(counted) == ["report", "sentences"]


def test_a_sweep_that_another_process_runs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.5)
    sweep = prepare(load_space(SPACES / "laptop.yaml"), "laptop", [f"data.lake={tmp_path}", f"storage={tmp_path}"])
    with owner.owned(sweep.folder), pytest.raises(TrainingError, match=r"sweeps/laptop is being trained by process"):
        run_sweep(sweep, resume=True)


def test_objectives_are_better_where_their_metric_is(tmp_path: Path) -> None:
    text = f"parameters: {{{TEMPERATURE}}}\nobjectives: [{{metric: loss}}, {{metric: images_per_second}}]"
    assert [one.mode for one in prepared(text, tmp_path).space.objectives] == ["min", "max"]


def test_trials_find_folders_that_were_given_relative_to_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = prepare(load_space(SPACES / "laptop.yaml"), "laptop", ["data.lake=data/lake", "storage=runs"])
    config = trial_config(sweep.space, sweep.base, Budget(320, None), {}, number=3, folder=f"{sweep.folder}/trials")
    assert config.data.lake == str(tmp_path / "data" / "lake")
    assert config.data.cache == str(tmp_path / "runs" / "cache")
    assert config.storage == str(tmp_path / "runs" / "sweeps" / "laptop" / "trials")


def test_trials_at_once_leave_a_share_to_read_with(monkeypatch: pytest.MonkeyPatch) -> None:
    config = override(load_config(None, []), {"training.cpus_per_worker": 0.9})
    grown = [False]
    monkeypatch.setattr(sweeps, "grows", lambda: grown[0])
    for cpus, most, count in ((3.0, 0, 2), (3.25, 0, 3), (3.0, 3, 2), (8.0, 3, 3), (0.5, 0, 1)):
        monkeypatch.setattr(sweeps, "ray", SimpleNamespace(cluster_resources=lambda cpus=cpus: {"CPU": cpus}))
        assert concurrent_trials([config], most) == count
    grown[0] = True
    assert concurrent_trials([config], 3) == 3
