from __future__ import annotations

import math

import numpy as np
import pytest

from rayzero.evaluation.metrics import bootstrap as module
from rayzero.evaluation.metrics.bootstrap import Bootstrap, Estimate, macro, paired_difference, weighted_mean


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    patients = [str(i) for i in range(2000)]
    out = Bootstrap(patients, 2000).mean(values, patients)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert out.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert out.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_images_of_a_patient_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=100), 10)
    apart = [str(i) for i in range(1000)]
    together = [str(i // 10) for i in range(1000)]
    widths = [out.high - out.low for out in (Bootstrap(p, 1000).mean(values, p) for p in (apart, together))]
    assert widths[1] / widths[0] == pytest.approx(math.sqrt(10), rel=0.15)


def test_equal_arguments_give_equal_intervals_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    values, patients = np.arange(50.0), [str(i // 2) for i in range(50)]
    first = Bootstrap(patients, 200).mean(values, patients)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 170)
    assert Bootstrap(patients, 200).mean(values, patients) == first
    assert Bootstrap(patients, 200, seed=1).mean(values, patients) != first


def test_without_replicates_there_is_no_interval() -> None:
    out = Bootstrap(["a", "b"], 0).mean(np.array([0.0, 1.0]), ["a", "b"])
    assert out.value == 0.5
    assert out.to_json() == {"value": 0.5, "low": None, "high": None, "n": 2}


def test_macro_weighs_names_equally_and_survives_replicates_without_one() -> None:
    patients = ["a", "b", "c", "d"]
    each, overall = macro(
        {"x": (np.array([1.0]), ["a"]), "y": (np.zeros(3), ["b", "c", "d"])}, Bootstrap(patients, 500)
    )
    assert each["x"] == Estimate(1.0, 1.0, 1.0, 1)
    assert overall.value == 0.5
    assert overall.n == 4
    # A replicate without patient a is the mean of y alone, 0; all others but one in 256 are 0.5.
    assert (overall.low, overall.high) == (0.0, 0.5)


def test_a_mean_without_weight_is_undefined() -> None:
    assert np.isnan(weighted_mean(np.ones(2), np.zeros((1, 2)))).all()


def test_no_patient_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one patient"):
        Bootstrap([], 10)


def test_pairs_see_what_separate_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    patients = [str(i) for i in range(400)]
    first = rng.normal(size=400)
    second = first + 0.05 + 0.1 * rng.normal(size=400)
    one, other = (Bootstrap(patients, 2000).mean(values, patients) for values in (second, first))
    assert one.low < other.high
    assert one.samples is not None
    assert other.samples is not None
    out = paired_difference(one.samples, other.samples, one.value - other.value)
    assert out.low > 0
    assert out.p < 0.01
    back = paired_difference(other.samples, one.samples, other.value - one.value)
    assert (back.low, back.high, back.p) == pytest.approx((-out.high, -out.low, out.p))
    assert paired_difference(one.samples, one.samples, 0.0).p == 1.0
    with pytest.raises(ValueError, match="2000 and 3 replicates"):
        paired_difference(one.samples, one.samples[:3], 0.0)


def test_the_key_names_the_replicates() -> None:
    keys = {Bootstrap(names, 10, seed=seed).key for names in (["a", "b"], ["b", "a", "a"], ["a"]) for seed in (0, 1)}
    assert len(keys) == 4


def test_columns_are_the_rows_of_samples() -> None:
    patients = ["a", "b", "b", "c"]
    bootstrap = Bootstrap(patients, 7)
    rows = bootstrap.samples(patients, lambda weights: weights)
    np.testing.assert_array_equal(np.concatenate(list(bootstrap.columns(patients)), axis=1).T, rows)
