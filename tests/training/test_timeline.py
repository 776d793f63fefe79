"""Length, batch sizes and learning rate of a run; plateau and early stopping."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from rayzero.config import ConfigError, TrainingConfig, validate
from rayzero.training.progress import Progress, score
from rayzero.training.timeline import Timeline


def test_a_run_counted_in_steps() -> None:
    timeline = Timeline(TrainingConfig(lr=1.0, warmup_steps=4, steps=20, batch_size=8), 10)
    rates = [timeline.learning_rate(step) for step in range(21)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    assert rates[20] == pytest.approx(0)
    assert not timeline.ends_epoch(20)
    assert Timeline(TrainingConfig(lr=1.0, schedule="constant"), 10).learning_rate(99) == 1.0


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 7])
def test_shares_of_any_number_of_workers_make_the_batch(workers: int) -> None:
    timeline = Timeline(TrainingConfig(epochs=3, batch_size=8, batch_growth=((1, 12),)), 50)
    for step in range(timeline.steps):
        shares = [timeline.share(step, rank, workers) for rank in range(workers)]
        assert sum(shares) == timeline.batch_size(step)
        assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"min_workers": 3, "workers": 2, "batch_size": 8}, "training.min_workers=3 is more than training.workers=2"),
        ({"min_workers": 1, "workers": 2, "batch_size": 8}, "training.min_workers=1 needs training.checkpoint_every"),
        ({"offload": "optimizer", "zero_stage": 0}, "training.offload=optimizer needs training.zero_stage of 1"),
        ({"offload": "optimizer", "chunks": 2}, "training.offload=optimizer with training.chunks=2"),
        ({"gpus_per_worker": 0.5, "workers": 2, "batch_size": 8}, "training.gpus_per_worker=0.5 with training.workers"),
        ({"gpus_per_worker": 2}, "less than or equal to 1"),
        ({"ema": 0.9, "zero_stage": 3}, "set training.zero_stage to 2 or less"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(TrainingConfig, changes, where="training")


def test_carzero_grows_its_batch_by_epoch() -> None:
    training = TrainingConfig(epochs=8, batch_size=64, batch_growth=((2, 128), (6, 256)))
    timeline = Timeline(training, 1000)
    per_epoch = [15, 15, 7, 7, 7, 7, 3, 3]
    sizes = [64] * 30 + [128] * 28 + [256] * 6
    assert timeline.steps == sum(per_epoch) == len(sizes)
    assert [timeline.batch_size(step) for step in range(timeline.steps)] == sizes
    assert [step for step in range(65) if timeline.ends_epoch(step)] == [15, 30, 37, 44, 51, 58, 61, 64]
    assert training.largest_batch == 256


def test_alta_stops_long_before_its_cosine_ends() -> None:
    training = TrainingConfig(epochs=30, warmup_epochs=10, schedule_epochs=100, batch_size=96, lr=1.0)
    timeline = Timeline(training, 960)
    assert timeline.steps == 300
    assert timeline.learning_rate(99) == 1.0
    # 88 % of the peak when training stops (ALTA spec, section 6).
    assert timeline.learning_rate(300) == pytest.approx(0.883, abs=1e-3)


def test_an_epoch_without_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="an epoch of 10 examples holds no batch of 32"):
        Timeline(TrainingConfig(epochs=1, batch_size=32), 10)
    with pytest.raises(ValueError, match=r"set training\.epochs"):
        TrainingConfig(warmup_epochs=1)
    with pytest.raises(ValueError, match="order of its epochs"):
        TrainingConfig(epochs=9, batch_growth=((6, 64), (2, 32)))
    with pytest.raises(ValueError, match="batch_size=33 is not a multiple"):
        TrainingConfig(epochs=9, workers=2, batch_growth=((6, 33),))


def test_a_plateau_halves_the_rate_and_then_ends_the_run() -> None:
    training = TrainingConfig(schedule="plateau", plateau_patience=1, early_stopping=5, monitor="loss")
    progress = Progress()
    scales = []
    # A first loss that is no number is nothing to compare with, and nothing that a manifest could hold.
    for loss in (math.inf, 2.0, 1.0, 1.5, 1.5, 1.5, math.nan, 1.0):
        progress.update(score({"validation/loss": loss}, training), training)
        scales.append((progress.rate_scale, progress.exhausted(training)))
    assert scales == [
        (1, False),
        (1, False),
        (1, False),
        (1, False),
        (0.5, False),
        (0.5, False),
        (0.25, False),
        (0.25, True),
    ]
    assert progress.best_score == -1.0


def test_a_best_loss_of_an_older_checkpoint_is_no_best_score() -> None:
    training = TrainingConfig(early_stopping=2, monitor="loss")
    progress = Progress.parse({"best": 1.5, "since_best": 1, "since_cut": 1, "rate_scale": 0.5})
    progress.update(score({"validation/loss": 1.4}, training), training)
    assert progress == Progress(best_score=-1.4, rate_scale=0.5)
    assert Progress.parse(asdict(progress)) == progress


def test_a_system_without_queries_follows_its_loss() -> None:
    assert score({"validation/loss": 2.0}, TrainingConfig()) == -2.0
    assert score({"validation/loss": 2.0, "validation/macro_auroc": 0.7}, TrainingConfig()) == 0.7
    assert score({"validation/loss": 2.0, "validation/macro_auroc": math.nan}, TrainingConfig()) is None
