"""Patient-level bootstrap: images of one patient are drawn together, because they are not independent.

A replicate is a weight per item, the number of times its patient was drawn, so that every statistic is a weighted
one and a block of replicates is a matrix product. All metrics of an evaluation share the same replicates.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Float = np.ndarray[Any, np.dtype[np.float64]]

CONFIDENCE = 0.95
# Elements of one (replicates, items) block of weights: 1 MB of float64, which stays in the cache.
_BLOCK_ELEMENTS = 1 << 17
# Elements of one (items, replicates) block of weights that classes share: 16 MB of float32.
_COLUMN_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A metric, its percentile bootstrap interval, and the number ``n`` of items it is over; NaN where undefined.

    ``samples`` (R,) are its replicates, for paired comparisons.
    """

    value: float
    low: float
    high: float
    n: int
    samples: Float | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, float | int | None]:
        """JSON has no NaN: undefined numbers are null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {**{key: float(v) if math.isfinite(v) else None for key, v in numbers.items()}, "n": self.n}


class Bootstrap:
    """Replicates over ``patients`` (repeats allowed). Equal arguments give equal replicates."""

    def __init__(self, patients: Sequence[str], replicates: int, *, seed: int = 0) -> None:
        names = sorted(set(patients))
        if not names:
            raise ValueError("a bootstrap needs at least one patient")
        self.replicates = replicates
        self._column = {name: column for column, name in enumerate(names)}
        self.key = hashlib.sha256("\n".join([str(seed), str(replicates), *names]).encode()).hexdigest()
        """Equal for equal replicates: figures of two systems under one key can be compared in pairs."""
        share = np.full(len(names), 1.0 / len(names))
        self._counts = np.random.default_rng(seed).multinomial(len(names), share, size=replicates).astype(np.uint16)

    def samples(self, patients: Sequence[str], statistic: Callable[[Float], Float]) -> Float:
        """``statistic`` of every replicate, stacked (R, ...).

        ``statistic`` takes weights (r, n), one column per item of ``patients``, and returns (r, ...).
        """
        columns = np.array([self._column[name] for name in patients], dtype=np.intp)
        step = max(1, _BLOCK_ELEMENTS // max(1, len(columns)))
        starts = range(0, len(self._counts), step) or (0,)
        return np.concatenate([statistic(self._counts[i : i + step, columns].astype(np.float64)) for i in starts])

    def columns(self, patients: Sequence[str]) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        """The weights of the items of ``patients`` (n,) as blocks (n, r) of all replicates in turn."""
        owners = np.array([self._column[name] for name in patients], dtype=np.intp)
        step = max(1, _COLUMN_ELEMENTS // max(1, len(owners)))
        for start in range(0, len(self._counts), step):
            block = np.ascontiguousarray(self._counts[start : start + step].T)
            yield block[owners].astype(np.float32)

    def mean(self, values: Float, patients: Sequence[str]) -> Estimate:
        """The mean of ``values`` (n,) with its interval."""
        values = np.asarray(values, dtype=np.float64)
        samples = self.samples(patients, lambda weights: weighted_mean(values, weights))
        return estimate(float(values.mean()) if len(values) else math.nan, samples, len(values))


def weighted_mean(values: Float, weights: Float) -> Float:
    """Mean (r,) of ``values`` (n,) under each row of ``weights`` (r, n); NaN where a row is all zero."""
    total = weights.sum(axis=1)
    return divide(weights @ values, total)


def divide(top: Float, bottom: Float) -> Float:
    """``top / bottom`` elementwise, NaN where ``bottom`` is zero."""
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0))


def estimate(value: float, samples: Float, n: int) -> Estimate:
    """``value`` with the 95 % percentile interval of the ``samples`` (R,) where it is defined."""
    defined = samples[np.isfinite(samples)]
    if not len(defined) or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, n)
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high), n, samples)


@dataclass(frozen=True)
class Difference:
    """How much higher one figure is than another on the same replicates, its interval, and a two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def paired_difference(one: Float, other: Float, value: float) -> Difference:
    """The difference ``value`` of two figures with the interval of their paired replicates (R,).

    ``p`` is twice the share of replicates on the far side of zero, the observation counted as one of them, at most 1.
    Raises ValueError when the replicates are not equally many.
    """
    if len(one) != len(other):
        raise ValueError(f"{len(one)} and {len(other)} replicates make no pairs")
    gaps = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    gaps = gaps[np.isfinite(gaps)]
    if not len(gaps):
        return Difference(value, math.nan, math.nan, math.nan)
    low, high = np.quantile(gaps, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    far = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
    return Difference(value, float(low), float(high), min(1.0, 2 * (far + 1) / (len(gaps) + 1)))


def mean_defined(values: Float, axis: int) -> Float:
    """Mean over ``axis`` of the entries that are not NaN; NaN where there is none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice", category=RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis))


def macro(
    values: Mapping[str, tuple[Float, Sequence[str]]], bootstrap: Bootstrap
) -> tuple[dict[str, Estimate], Estimate]:
    """Mean per name and the unweighted mean over names, each with its interval.

    ``values`` maps a name to its items (n,) and their patients. A replicate without items of a name averages
    over the other names.
    """
    each, samples = {}, []
    for name, (items, patients) in values.items():
        items = np.asarray(items, dtype=np.float64)
        drawn = bootstrap.samples(patients, lambda weights, items=items: weighted_mean(items, weights))  # type: ignore[misc]
        each[name] = estimate(float(items.mean()), drawn, len(items))
        samples.append(drawn)
    if not each:
        return {}, Estimate(math.nan, math.nan, math.nan, 0)
    value = float(np.mean([one.value for one in each.values()]))
    total = sum(one.n for one in each.values())
    return each, estimate(value, mean_defined(np.stack(samples), axis=0), total)
